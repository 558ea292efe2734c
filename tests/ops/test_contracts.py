"""What holds for every operation: its registration, torch.compile, and any number of threads."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from bnbx.backends import BACKENDS
from bnbx.conformance.samples import SIGNED, arguments
from bnbx.ops import CONTRACTS

from .checks import every_isa, refuses, run, same

#: Operations that return the indices of outlier columns, as many as the data has.
SIZED_BY_THE_DATA = ("int8_vectorwise_quant", "int8_double_quant")


def results(name, given):
    """Call an operation on a copy; return its outputs and everything it may have written to."""
    given = copy.deepcopy(given)
    return run(name, **given), tensors(given)


def tensors(given):
    values = (value if isinstance(value, list) else [value] for value in given.values())
    return tuple(entry for value in values for entry in value if isinstance(entry, torch.Tensor))


def compare(found, expected):
    outputs, expected_outputs = (
        (result,) if isinstance(result, torch.Tensor) else result or ()
        for result in (found[0], expected[0])
    )
    same(outputs, expected_outputs)
    same(found[1], expected[1])


@pytest.mark.parametrize("name", CONTRACTS)
def test_opcheck(name):
    packet, _, overload = name.partition(".")
    operation = getattr(getattr(torch.ops.bnbx, packet), overload or "default")
    found = torch.library.opcheck(operation, (), arguments(name, dtype=torch.bfloat16))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", [n for n in CONTRACTS if n not in SIZED_BY_THE_DATA])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(name, dynamic):
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(given):
        return run(name, **given)

    for M in (3, 4):
        given = arguments(name, M=M)
        other = copy.deepcopy(given)
        compare((compiled(other), tensors(other)), results(name, given))
    torch.compiler.reset()


@pytest.mark.parametrize("name", SIZED_BY_THE_DATA)
def test_sizes_from_the_data_compile_into_one_graph(name):
    given = arguments(name)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda g: run(name, **g), fullgraph=True, backend="aot_eager")
        compare((compiled(given), tensors(given)), results(name, given))
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own
def test_inductor():
    product = arguments("gemm_4bit", dtype=torch.bfloat16)
    int8 = arguments("int8_linear", dtype=torch.bfloat16)

    def forward(x):
        codes, absmax = torch.ops.bnbx.quantize_blockwise(x, SIGNED, 64)
        x = torch.ops.bnbx.dequantize_blockwise(codes, absmax, SIGNED, 64, x.dtype)
        return run("gemm_4bit", **{**product, "A": x}) + run("int8_linear", **{**int8, "A": x * 2})

    x = product["A"]
    same(torch.compile(forward, fullgraph=True)(x), forward(x))
    torch.compiler.reset()


@every_isa
@pytest.mark.parametrize("name", CONTRACTS)
def test_the_number_of_threads_changes_no_bit(name, isa):
    decodes_first = BACKENDS[0].name == "metal_emulator" and name.startswith("gemm_4bit")
    if isa == "reference" or decodes_first:
        pytest.skip("a promise of the kernels, not of torch")
    before = torch.get_num_threads()
    try:
        for dtype in (torch.float32, torch.bfloat16):
            given = arguments(name, M=21, N=150, K=1088, dtype=dtype)
            torch.set_num_threads(1)
            expected = results(name, given)
            torch.set_num_threads(2)
            compare(results(name, given), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", CONTRACTS)
def test_tensors_on_two_devices_are_refused(name):
    given = arguments(name)
    names = [n for n, value in given.items() if isinstance(value, torch.Tensor)]
    if "p" in given:  # lists of tensors: tests/ops/test_optimizer_update_*.py
        names.insert(0, "p")
    for argument in names[1:]:
        refuses(name, argument, **{argument: given[argument].to("meta")})
    if isinstance(given[names[0]], torch.Tensor) and len(names) > 1:
        refuses(name, names[1], **{names[0]: given[names[0]].to("meta")})


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(name, dtype):
    given = arguments(name, dtype=dtype)
    expected = results(name, given)
    with torch.autocast("cpu", torch.float16):
        compare(results(name, given), expected)


@pytest.mark.parametrize("name", CONTRACTS)
def test_calls_from_several_threads_at_once(name):
    given = arguments(name, M=21, N=70, K=300)
    expected = results(name, given)
    found = [None] * 4

    def work(i):
        for _ in range(3):
            found[i] = results(name, given)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in found:
        compare(result, expected)
