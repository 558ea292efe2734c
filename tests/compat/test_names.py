"""What programs written for bitsandbytes touch beside its documented names."""

from __future__ import annotations

import copy
import inspect
import json

import pytest
import torch

import bnbx
from bnbx import functional as F
from bnbx.compat import old_names
from bnbx.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

from .processes import REGISTERED, run

SHAPE = (96, 64)


@pytest.fixture
def weight():
    return torch.randn(SHAPE)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(64, 32, bias=False)
        self.lm_head = torch.nn.Linear(64, 8)
        self.inner = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU())


def test_replace_linear():
    model = Block()
    x, before = torch.randn(3, 64), copy.deepcopy(model)
    same = old_names.replace_linear(
        model,
        lambda K, N, bias: Linear4bit(K, N, bias, quant_type="nf4"),
        copy_weights=True,
        post_processing_function="to_empty_not_there",
    ).to("cpu")
    assert same is model
    assert type(model.lm_head) is torch.nn.Linear
    assert type(model.up) is Linear4bit
    assert model.up.bias is None
    assert type(model.inner[0]) is Linear4bit
    assert torch.equal(model.inner[0].bias, before.inner[0].bias)
    packed, state = F.quantize_4bit(
        before.up.weight.data, quant_type="nf4", compress_statistics=True
    )
    assert torch.equal(model.up(x), bnbx.matmul_4bit(x, packed, state))


def test_replace_linear_calls_the_method_of_the_replaced():
    called = []

    class Layer(torch.nn.Linear):
        def done(self, layer):
            called.append(layer)

    model = torch.nn.Sequential(Layer(4, 4))
    replaced = model[0]
    old_names.replace_linear(
        model, torch.nn.Linear, skip_modules=(), post_processing_function="done"
    )
    assert called == [replaced]
    assert model[0] is not replaced


def test_params4bit_from_the_attributes_of_another(weight):
    """transformers and peft: Params4bit(data, **old.__dict__)."""
    old = Params4bit(weight, quant_type="nf4", blocksize=128).to("cpu")
    old.tag = "kept"
    new = Params4bit(old.data, **old.__dict__)
    assert new.tag == "kept"
    assert new.quant_state is old.quant_state
    assert new.__dict__ == old.__dict__
    assert torch.equal(new.dequantize(), old.dequantize())


def test_settings_that_programs_look_for_in_the_signature():
    """accelerate, diffusers and Lightning ask before they pass these on."""
    assert {"compute_dtype", "quant_storage"} <= inspect.signature(Linear4bit).parameters.keys()
    names = {"quant_state", "blocksize", "quant_storage", "module", "bnb_quantized"}
    assert names <= inspect.signature(Params4bit).parameters.keys()


def test_int8params_from_the_attributes_of_another(weight):
    """accelerate: Int8Params(data, requires_grad=..., **old.__dict__); peft with SCB by keyword."""
    old = Int8Params(weight, requires_grad=False).to("cpu")
    new = Int8Params(old.data, requires_grad=False, **old.__dict__)
    assert torch.equal(new.CB, old.CB)
    assert torch.equal(new.dequantize(), old.dequantize())
    by_name = Int8Params(
        old.data, requires_grad=False, has_fp16_weights=False, CB=old.CB, SCB=old.SCB
    )
    assert torch.equal(by_name.dequantize(), old.dequantize())
    # dispatch of accelerate's hooks: an unquantized weight with the scales of the saved one.
    floating = Int8Params(weight, has_fp16_weights=False, requires_grad=False).to("cpu")
    assert torch.equal(floating.SCB, old.SCB)


def test_reset_grads_forgets_the_weight(weight):
    """peft, after a merge: a new weight, then state.reset_grads()."""
    layer = Linear8bitLt(64, 96, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight})
    layer.to("cpu")
    layer.weight = Int8Params(weight * 2, has_fp16_weights=False, requires_grad=False).to("cpu")
    layer.state.reset_grads()
    x = torch.randn(3, 64)
    codes, scales, _ = F.int8_vectorwise_quant(weight * 2)
    state = bnbx.MatmulLtState(CB=codes, SCB=scales, has_fp16_weights=False)
    assert torch.equal(layer(x), bnbx.matmul(x, None, state=state))


def test_state_attributes(weight):
    """What vLLM and TGI set and read of a MatmulLtState."""
    codes, scales, _ = F.int8_vectorwise_quant(weight)
    state = bnbx.MatmulLtState()
    state.CB, state.SCB = codes, scales
    state.threshold, state.has_fp16_weights, state.is_training = 6.0, False, False
    state.use_pool = True
    x = torch.randn(3, 64)
    expected = bnbx.matmul(
        x, None, state=bnbx.MatmulLtState(CB=codes, SCB=scales, has_fp16_weights=False, threshold=6)
    )
    assert torch.equal(bnbx.matmul(x, codes, state=state), expected)
    assert state.CxB is None
    assert state.CB is codes
    for name in ("SB", "SBt", "CBt", "subB", "CxBt", "formatB", "idx", "outlier_pool"):
        assert getattr(state, name) is None
    assert state.has_accumulated_gradients is False
    state.CxB = codes
    state.reset_grads()
    assert state.CB is state.SCB is state.CxB is None


def test_quant_state_by_keyword(weight):
    """vLLM joins the states of experts: every field by its name."""
    packed, state = F.quantize_4bit(weight, quant_type="nf4")
    twice = F.QuantState(
        absmax=torch.cat([state.absmax, state.absmax]),
        shape=(2 * SHAPE[0], SHAPE[1]),
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )
    joined = F.dequantize_4bit(torch.cat([packed, packed]), twice)
    assert torch.equal(joined, F.dequantize_4bit(packed, state).repeat(2, 1))


def test_scales_decoded_by_hand(weight):
    """vLLM undoes the double quantization of a state itself."""
    packed, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    expected = F.dequantize_4bit(packed, state)
    absmax = F.dequantize_blockwise(state.absmax, state.state2)
    absmax += state.offset
    state.absmax, state.nested, state.offset, state.state2 = absmax.float(), False, None, None
    assert torch.equal(F.dequantize_4bit(packed, state), expected)


def test_matmul_4bit_with_a_transposed_view_of_a_slice():
    """vLLM packs several weights into one tensor and multiplies with slices of it."""
    weights = [torch.randn(shape) for shape in ((64, 64), (32, 64), (128, 64))]
    parts = [F.quantize_4bit(w, quant_type="nf4") for w in weights]
    packed = torch.cat([codes for codes, _ in parts])
    x, first = torch.randn(3, 64), 0
    for w, (codes, state) in zip(weights, parts, strict=True):
        piece = packed[first : first + codes.shape[0]]
        first += codes.shape[0]
        got = bnbx.matmul_4bit(x, piece.t(), state)
        assert torch.equal(got, bnbx.matmul_4bit(x, codes, state))
        assert got.shape == (3, w.shape[0])


def test_outlier_tracer_is_one(weight):
    from bnbx.utils import OutlierTracer, find_outlier_dims

    tracer = OutlierTracer.get_instance()
    assert OutlierTracer.get_instance() is tracer
    weight[:, 7] *= 50
    assert find_outlier_dims(weight).tolist() == [7]


def test_dictionaries_in_tensors():
    packed = old_names.pack_dict_to_tensor({"blocksize": 64})
    assert bytes(packed.tolist()) == json.dumps({"blocksize": 64}).encode()
    assert old_names.unpack_tensor_to_dict(packed) == {"blocksize": 64}


def test_helpers(weight):
    assert old_names.get_ptr(weight).value == weight.data_ptr()
    assert old_names.get_ptr(None) is None
    assert old_names.sync_gpu(weight) is None
    mapping = old_names.LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING
    layer = Linear8bitLt(64, 96, has_fp16_weights=False).to("cpu")
    name = old_names.INVERSE_LINEAR_8BIT_WEIGHTS_FORMAT_MAPPING
    assert name[layer.state_dict()["weight_format"].item()] == "row"
    assert {mapping[value] for value in name.values()} == {0, 1, 2, 3}


def test_names_where_programs_look_for_them():
    run(
        REGISTERED
        + """
import torch, bitsandbytes as bnb
from bitsandbytes.cextension import BNB_BACKEND, get_native_library, lib
from bitsandbytes.functional import get_ptr, pack_dict_to_tensor
from bitsandbytes.nn.parametrize import replace_parameter_4bit, replace_parameter_4bit_prequantized
from bitsandbytes.optim.optimizer import Optimizer8bit
from bitsandbytes.utils import replace_linear, sync_gpu
assert get_native_library() is lib is bnb.functional.lib
assert lib.compiled_with_cuda is False or torch.cuda.is_available()
# Programs take functions of the library when they are imported, and call them on a GPU.
function = bnb.functional.lib.cdequantize_blockwise_bf16_nf4
assert not hasattr(lib, "__path__")
try:
    function(get_ptr(torch.zeros(1)))
except RuntimeError as failure:
    assert "cdequantize_blockwise_bf16_nf4" in str(failure)
else:
    raise AssertionError
p = torch.nn.Parameter(torch.zeros(4))
assert isinstance(bnb.optim.PagedLion8bit([p]), Optimizer8bit)
assert {"multi_backend"} <= bnb.features and BNB_BACKEND in {"CPU", "CUDA", "ROCm", "XPU"}
layer = torch.nn.Linear(64, 64)
replace_parameter_4bit(layer, "weight", quant_type="nf4")
assert layer(torch.ones(1, 64)).isfinite().all()
x = torch.randn(2, 64)
linear = bnb.nn.Linear4bit(64, 64, bias=False).to("cpu")
apply = bnb.autograd._functions.MatMul4Bit.apply
assert torch.equal(apply(x, linear.weight.t(), None, None, linear.weight.quant_state), linear(x))
linear = bnb.nn.Linear8bitLt(64, 64, bias=False, has_fp16_weights=False).to("cpu")
apply = bnb.autograd._functions.MatMul8bitLt.apply
assert torch.equal(apply(x, linear.weight, None, None, linear.state), linear(x))
"""
    )


def test_cuda_specs_without_cuda():
    run(
        REGISTERED
        + """
import torch
from bitsandbytes import cuda_specs
from bitsandbytes.cuda_specs import CUDASpecs
torch.version.hip, torch.version.cuda = None, None
assert cuda_specs.get_cuda_version_tuple() is cuda_specs.get_cuda_version_string() is None
assert cuda_specs.get_cuda_specs() is None and cuda_specs.get_rocm_gpu_arch() == "unknown"
torch.version.cuda = "13.0"
assert cuda_specs.get_cuda_version_tuple() == (13, 0)
assert cuda_specs.get_cuda_version_string() == "130"
torch.cuda.device_count = lambda: 2
torch.cuda.get_device_capability = lambda index: [(8, 0), (7, 0)][index]
specs = cuda_specs.get_cuda_specs()
assert specs == CUDASpecs((8, 0), "130", (13, 0)) and specs.has_imma
assert not CUDASpecs((7, 0), "118", (11, 8)).has_imma
"""
    )
