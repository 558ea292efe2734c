"""Checks that each object file of the CPU backend keeps to its instruction set.

A processor without AVX-512 must be able to run everything but the files built for AVX-512: no other
file may hold such an instruction, and no two files may define the same inline function, of which
the linker keeps one, perhaps the one that the processor cannot run. The same holds on Arm for what
came after the first 64-bit processors.
"""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import subprocess
import sys
from pathlib import Path

SKIPPED = 77
#: The encoding, byte by byte on x86 and as one word on Arm, and the mnemonic.
INSTRUCTION = re.compile(r"^\s*[0-9a-f]+:\t((?:[0-9a-f]{2} )+|[0-9a-f]{8})\s*\t(\S+)")
#: Segment and address-size prefixes, which may stand in front of an instruction's encoding.
PREFIXES = {"26", "2e", "36", "3e", "64", "65", "67"}
ENCODINGS = {"c4": "VEX", "c5": "VEX", "62": "EVEX"}

MASKS = r"k(add|and|andn|mov|not|or|ortest|shift[lr]|test|unpck\w\w|xnor|xor)[bwdq]"
TILES = r"(tile|tdp|ldtilecfg|sttilecfg)\w*"
VNNI = r"vpdp\w*"
#: bf16 and bytes.
BEYOND_VNNI = rf"{TILES}|(vdpbf16|vcvtne|vpermb|vperm[it]2b|vpmultishiftqb)\w*"

DOT_PRODUCTS = r"[su]dot"
#: bf16 and products of int8 matrices.
MATRICES = r"bf(cvt|dot|ml|mm)\w*|(us|su)dot|[su]{1,2}mmla"
#: The atomics of Armv8.1 and SVE, which no kernel asks for.
BEYOND_MATRICES = (
    r"(cas|swp|(ld|st)(add|clr|eor|set|[su]max|[su]min))(a|l|al|p)*[bh]?|"
    r"ptrue|while\w+|(ld|st)n?t?1[bhwd]|(cnt|inc)[bhwd]|rdvl|addvl|movprfx"
)
ARM = f"{DOT_PRODUCTS}|{MATRICES}|{BEYOND_MATRICES}"

#: Object file -> encodings and mnemonics that it must not hold.
FORBIDDEN = {
    "cpu_features": ({"VEX", "EVEX"}, f"{TILES}|{ARM}"),
    "dispatch": ({"VEX", "EVEX"}, f"{TILES}|{ARM}"),
    "isa_scalar": ({"VEX", "EVEX"}, f"{TILES}|{ARM}"),
    "isa_avx2": ({"EVEX"}, f"{MASKS}|{VNNI}|{BEYOND_VNNI}"),
    "isa_avx512": (set(), f"{VNNI}|{BEYOND_VNNI}"),
    "isa_avx512vnni": (set(), BEYOND_VNNI),
    "isa_amx": (set(), r"(?!)"),
    "isa_neon": (set(), ARM),
    "isa_neon_dotprod": (set(), f"{MATRICES}|{BEYOND_MATRICES}"),
    "isa_neon_mmla": (set(), BEYOND_MATRICES),
}


def output(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.splitlines()


def encoding_of(code: list[str]) -> str:
    first = next((byte for byte in code if byte not in PREFIXES), "")
    return ENCODINGS.get(first, "")


def foreign_instructions(objdump: str, path: Path) -> list[str]:
    """Return the instructions in an object file that its instruction set does not have."""
    encodings, mnemonics = FORBIDDEN[path.name.partition(".")[0]]
    found, total = [], 0
    for line in output(objdump, "--disassemble", "--wide", str(path)):
        if not (match := INSTRUCTION.match(line)):
            continue
        total += 1
        mnemonic = match[2]
        if encoding_of(match[1].split()) in encodings or re.fullmatch(mnemonics, mnemonic):
            found.append(f"{path.name}: foreign instruction:{line.split(':', 1)[1]}")
    if total == 0:
        found.append(f"{path.name}: the disassembler found no instruction")
    return found


def shared_functions(nm: str, paths: list[Path]) -> list[str]:
    """Return the inline functions that more than one object file or library may define."""
    holders = collections.defaultdict(list)
    for path in paths:
        for line in output(nm, str(path)):
            kind, name = line.split()[-2:]
            if kind == "W":
                holders[name].append(path.name)
    return [
        f"{', '.join(files)}: shared inline function: {name}"
        for name, files in sorted(holders.items())
        if len(files) > 1 or (files[0].startswith("isa_") and "bnbx" not in name)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objdump", required=True)
    parser.add_argument("--nm", required=True)
    parser.add_argument("objects", nargs="+", type=Path)
    options = parser.parse_args()
    for tool in (options.objdump, options.nm):
        if shutil.which(tool) is None:
            sys.stdout.write(f"skipped: no {tool} here\n")
            return SKIPPED
    faults = shared_functions(options.nm, options.objects)
    for path in options.objects:
        faults += foreign_instructions(options.objdump, path)
    lines = [*faults[:50], f"{len(options.objects)} object files, {len(faults)} faults"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
