"""Linear layers with a 4-bit weight: Linear4bit, LinearNF4, LinearFP4."""

from __future__ import annotations

import torch
from torch import Tensor

from bnbx.autograd import matmul_4bit
from bnbx.nn.module4bit import Module4bit
from bnbx.nn.params4bit import Params4bit


class Linear4bit(Module4bit, torch.nn.Linear):
    """``torch.nn.Linear`` with a weight in 4 bits, quantized when it is moved to a device.

    Load or assign a floating point weight, then call ``.to(device)``. The weight is frozen;
    gradients flow to the input and the bias. A forward pass changes neither weight nor bias.

    Parameters
    ----------
    input_features, output_features
        K and N.
    bias
        Whether there is a bias, in floating point.
    compute_dtype
        What the input is converted to before the product; the result has the input's dtype again.
        By default the dtype of the first input, if that is float32 or bfloat16, and otherwise that
        of each input; inputs under ``torch.autocast`` are computed in its dtype until one comes
        without.
    compress_statistics
        Whether the scales are quantized too (double quantization).
    quant_type
        ``"fp4"`` or ``"nf4"``.
    quant_storage
        The dtype whose elements hold the codes: uint8, bfloat16, float16 or float32.
    device
        Where weight and bias are made; that does not quantize the weight.
    blocksize
        Elements that share a scale: 32, 64, 128, ..., 4096.

    Raises
    ------
    RuntimeError
        In forward, if the weight is not quantized yet.

    Examples
    --------
    >>> layer = Linear4bit(64, 32, quant_type="nf4", compute_dtype=torch.bfloat16)
    >>> layer.weight.data = torch.randn(32, 64)
    >>> y = layer.to("cpu")(torch.randn(8, 64))

    References
    ----------
    Dettmers et al. 2023, QLoRA, section 3.
    """

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
        blocksize: int = 64,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.quant_state = None
        self.weight = Params4bit(
            self.weight.data,
            requires_grad=False,
            blocksize=blocksize,
            compress_statistics=compress_statistics,
            quant_type=quant_type,
            quant_storage=quant_storage,
            module=self,
        )
        self.compute_dtype = compute_dtype
        self.compute_type_is_set = compute_dtype is not None
        self.quant_storage = quant_storage

    def _weight_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def set_compute_type(self, x: Tensor) -> None:
        """Compute in the dtype of ``x`` from now on, if it is float32 or bfloat16."""
        if x.dtype in {torch.float32, torch.bfloat16}:
            self.compute_dtype = x.dtype

    def _choose_dtype(self, x: Tensor) -> torch.dtype | None:
        """Return what to compute in, None for x's dtype; without autocast that is settled then."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        if not torch.compiler.is_compiling():
            self.set_compute_type(x)
            self.compute_type_is_set = True
        return self.compute_dtype

    def forward(self, x: Tensor) -> Tensor:
        weight, state = self._packed_weight()
        dtype = x.dtype
        chosen = self.compute_dtype if self.compute_type_is_set else self._choose_dtype(x)
        compute_dtype = chosen or dtype
        if compute_dtype is not dtype:
            x = x.to(compute_dtype)
        out = matmul_4bit(x, weight, state, None, self._parameter("bias"))
        return out if compute_dtype is dtype else out.to(dtype)


class LinearFP4(Linear4bit):
    """``Linear4bit`` with ``quant_type="fp4"``."""

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
        blocksize: int = 64,
    ) -> None:
        super().__init__(
            input_features,
            output_features,
            bias,
            compute_dtype,
            compress_statistics,
            "fp4",
            quant_storage,
            device,
            blocksize,
        )


class LinearNF4(Linear4bit):
    """``Linear4bit`` with ``quant_type="nf4"``."""

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_storage: torch.dtype = torch.uint8,
        device: torch.device | str | int | None = None,
        blocksize: int = 64,
    ) -> None:
        super().__init__(
            input_features,
            output_features,
            bias,
            compute_dtype,
            compress_statistics,
            "nf4",
            quant_storage,
            device,
            blocksize,
        )
