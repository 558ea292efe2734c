"""The experts of one layer of a mixture: in bfloat16, in 4 bits, and decoded at each call.

Both matrices, the gate and the sum over the experts of a token, with the sizes of one layer of a
small Mixtral. Prints the table of docs/guides/moe.md.

    python benchmarks/mixture_study.py --threads 1
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable

import torch
from torch.nn.utils import parametrize
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

import bnbx
from common import default_threads, set_threads
from side_by_side.timing import Call, Settings, interleaved

EXPERTS, CHOSEN, HIDDEN, INTERMEDIATE = 8, 2, 2048, 4096
#: One token, a batch that decodes, a prompt.
TOKENS = (1, 8, 512)

Layer = Callable[..., torch.Tensor]


def layers() -> dict[str, Layer]:
    """Return the same experts in three forms."""
    config = MixtralConfig(
        hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_local_experts=EXPERTS
    )
    config._experts_implementation = "grouped_mm"  # noqa: SLF001 (as transformers tests do)
    experts = MixtralExperts(config).bfloat16()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    # In a container: quantization replaces the class of the experts in their parent.
    model = torch.nn.Sequential(copy.deepcopy(experts))
    bnbx.quantize_(model, progress=False)
    quantized = model[0]

    def decoded(*args: torch.Tensor) -> torch.Tensor:
        with parametrize.cached():
            return MixtralExperts.forward(quantized, *args)

    return {
        "bf16, `grouped_mm`": experts,
        "decoded whole, then `grouped_mm`": decoded,
        "4 bits in memory and product": quantized,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    set_threads(options.threads)
    sides = layers()
    settings = Settings(rounds=9, budget=3.0, cpu_time=options.threads == 1)
    print(f"| tokens | {' | '.join(sides)} |\n| -- |{' -- |' * len(sides)}")
    for tokens in TOKENS:
        chosen = torch.stack([torch.randperm(EXPERTS)[:CHOSEN] for _ in range(tokens)])
        given = torch.randn(tokens, HIDDEN).bfloat16(), chosen, torch.rand(tokens, CHOSEN)
        with torch.inference_mode():
            calls = {name: Call([functools.partial(side, *given)]) for name, side in sides.items()}
            times = interleaved(calls, settings)
        print(f"| {tokens} | {' | '.join(f'{t.median * 1e3:.3g}' for t in times.values())} |")


if __name__ == "__main__":
    main()
