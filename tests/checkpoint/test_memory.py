"""The memory that quantizing a checkpoint takes does not grow with the checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

if sys.platform != "linux":
    pytest.skip("ru_maxrss is in other units elsewhere", allow_module_level=True)

SHAPE = (2048, 2048)
LARGEST = 2 * SHAPE[0] * SHAPE[1]
PROGRAM = """
import json, resource, sys
import torch
from bnbx.checkpoint import quantize_checkpoint

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

torch.set_num_threads(1)
small, src, dst, options = json.loads(sys.argv[1])
quantize_checkpoint(small, dst + ".warm.safetensors", progress=False, **options)
before = peak()
quantize_checkpoint(src, dst, progress=False, **options)
print(peak() - before)
"""


def write(path, count, shape):
    weight = torch.randn(shape).to(torch.bfloat16)
    names = [f"layers.{i}.proj.weight" for i in range(count)]
    # Kept tensors are copied in pieces: the embedding is larger than every weight.
    tensors = {"embed_tokens.weight": torch.cat([weight] * 4), **{n: weight.clone() for n in names}}
    save_file(tensors, path)
    return sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("options", [{"kind": "nf4", "double_quant": True}, {"kind": "int8"}])
def test_bounded_by_the_largest_weight(tmp_path, options):
    small, src = tmp_path / "small.safetensors", tmp_path / "src.safetensors"
    write(small, 1, (64, 64))
    size = write(src, 36, SHAPE)
    assert size > 300e6
    dst = tmp_path / "dst.safetensors"
    arguments = json.dumps([str(small), str(src), str(dst), options])
    done = subprocess.run(  # noqa: S603 (our own program)
        [sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The weight, what it becomes, and what is needed meanwhile.
    assert int(done.stdout) < 4 * LARGEST + 32e6 < size / 4
