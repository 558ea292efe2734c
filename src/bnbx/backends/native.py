"""Binds an ``_ext`` module, which speaks in pointers and sizes, to the operations of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnbx.codebooks import QUANT_TYPES_4BIT
from bnbx.ops import FLOAT_DTYPES, OPTIMIZERS, RULES, packed_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    from bnbx.ops import Int8Quantized, OptimizerUpdate

#: The numbers of ``bnbx::DType``, ``bnbx::QuantType`` and ``bnbx::OptimizerRule``.
DTYPES = {dtype: number for number, dtype in enumerate(FLOAT_DTYPES)}
QUANT_TYPES = {name: number for number, name in enumerate(QUANT_TYPES_4BIT)}
RULE_NUMBERS = {name: list(RULES).index(rule) for name, rule in OPTIMIZERS.items()}


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _clear_rest(packed: Tensor, numel: int) -> None:
    """Set the bytes to zero that the packed codes of ``numel`` elements leave."""
    used = packed_bytes(numel)
    if used < packed.numel() * packed.itemsize:
        packed.view(torch.uint8).view(-1)[used:] = 0


class NativeBackend:
    """The kernels of one ``_ext`` module; a method an operation.

    Each method takes the outputs that the contract has allocated, then the operation's arguments.

    Parameters
    ----------
    ext
        The compiled module.
    stream_of
        Returns the handle of the stream on which a tensor's work is queued; 0 on a CPU.
    device
        What DLPack calls the type of device whose memory the kernels read; 1 is a CPU.
    """

    def __init__(
        self, ext: ModuleType, stream_of: Callable[[Tensor], int], device: int = 1
    ) -> None:
        self.ext: Any = ext
        ext.read_tensors_by(Tensor.__dlpack_c_exchange_api__, device)
        self.stream_of = stream_of

    def kernel(self, method: str) -> Callable[..., Any]:
        """Return what the dispatcher calls for the operation of a method."""
        function: Callable[..., Any] = getattr(self, method)
        return function

    def quantize_4bit(
        self,
        outputs: tuple[Tensor, Tensor],
        A: Tensor,
        blocksize: int,
        quant_type: str,
        quant_storage: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        packed, absmax = outputs
        A = A.contiguous()
        _clear_rest(packed, A.numel())
        self.ext.quantize_4bit(
            A.data_ptr(),
            DTYPES[A.dtype],
            A.numel(),
            blocksize,
            QUANT_TYPES[quant_type],
            packed.data_ptr(),
            absmax.data_ptr(),
            self.stream_of(A),
        )
        return outputs

    def scale_search_4bit(
        self,
        absmax: Tensor,
        A: Tensor,
        importance: Tensor | None,
        factors: Sequence[float],
        refinements: int,
        blocksize: int,
        quant_type: str,
    ) -> Tensor:
        A = A.contiguous()
        importance = None if importance is None else importance.contiguous()
        self.ext.scale_search_4bit(
            A.data_ptr(),
            DTYPES[A.dtype],
            A.numel(),
            _pointer(importance),
            1 if importance is None else importance.numel(),
            list(factors),
            refinements,
            blocksize,
            QUANT_TYPES[quant_type],
            absmax.data_ptr(),
            self.stream_of(A),
        )
        return absmax

    def encode_4bit(
        self,
        packed: Tensor,
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        quant_storage: torch.dtype,
    ) -> Tensor:
        A, absmax = A.contiguous(), absmax.contiguous()
        _clear_rest(packed, A.numel())
        self.ext.encode_4bit(
            A.data_ptr(),
            DTYPES[A.dtype],
            A.numel(),
            absmax.data_ptr(),
            blocksize,
            QUANT_TYPES[quant_type],
            packed.data_ptr(),
            self.stream_of(A),
        )
        return packed

    def dequantize_4bit(
        self,
        out: Tensor,
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        A, absmax = A.contiguous(), absmax.contiguous()
        self.ext.dequantize_4bit(
            A.data_ptr(),
            absmax.data_ptr(),
            out.numel(),
            blocksize,
            QUANT_TYPES[quant_type],
            out.data_ptr(),
            DTYPES[dtype],
            self.stream_of(A),
        )
        return out

    def dequantize_4bit_out(self, _: None, *args: Any, out: Tensor) -> None:
        self.dequantize_4bit(out, *args)

    def gemm_4bit(self, out: Tensor, *call: Any) -> Tensor:
        return self._multiply_4bit(out, *call)

    def gemm_4bit_transposed(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        *nested: Any,
    ) -> Tensor:
        weight = (B, shapeB, absmax, blocksize, quant_type)
        return self._multiply_4bit(out, A, *weight, None, *nested, transposed=True)

    def _multiply_4bit(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        bias: Tensor | None = None,
        *nested: Any,
        transposed: bool = False,
    ) -> Tensor:
        ext = self.ext
        kernel = ext.gemm_4bit_transposed if transposed else ext.gemm_4bit
        ask = ext.gemm_4bit_transposed_workspace if transposed else ext.gemm_4bit_workspace
        columns = shapeB[1 if transposed else 0]
        rows = out.numel() // columns if columns else 0
        size = ask(DTYPES[A.dtype], rows, *shapeB)
        workspace = A.new_empty(size, dtype=torch.float32) if size else None
        call = (A, B, absmax, blocksize, quant_type, bias, *nested)
        sizes = (rows, *shapeB, _pointer(workspace))
        return self._call_4bit(kernel, sizes, transposed, out, *call)

    def _call_4bit(
        self,
        kernel: Callable[..., None],
        sizes: Sequence[int],
        transposed: bool,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        bias: Tensor | None = None,
        absmax_8bit: Tensor | None = None,
        absmax_code: Tensor | None = None,
        absmax_offset: Tensor | None = None,
        absmax_blocksize: int = 256,
    ) -> Tensor:
        """Multiply by one weight, or by a stack of them, of which ``sizes`` tells the kernel."""
        A, B, absmax = A.contiguous(), B.contiguous(), absmax.contiguous()
        bias = None if bias is None else bias.contiguous()
        codes = code = offset = 0
        if absmax_8bit is not None and absmax_code is not None and absmax_offset is not None:
            absmax_8bit, absmax_code = absmax_8bit.contiguous(), absmax_code.contiguous()
            codes, code = absmax_8bit.data_ptr(), absmax_code.data_ptr()
            offset = absmax_offset.data_ptr()
        kernel(
            A.data_ptr(),
            DTYPES[A.dtype],
            *sizes,
            B.data_ptr(),
            absmax.data_ptr(),
            blocksize,
            QUANT_TYPES[quant_type],
            *(() if transposed else (_pointer(bias),)),
            codes,
            code,
            offset,
            absmax_blocksize,
            out.data_ptr(),
            self.stream_of(A),
        )
        return out

    def quantize_blockwise(
        self, outputs: tuple[Tensor, Tensor], A: Tensor, code: Tensor, blocksize: int
    ) -> tuple[Tensor, Tensor]:
        codes, absmax = outputs
        A, code = A.contiguous(), code.contiguous()
        self.ext.quantize_blockwise(
            A.data_ptr(),
            DTYPES[A.dtype],
            A.numel(),
            code.data_ptr(),
            blocksize,
            codes.data_ptr(),
            absmax.data_ptr(),
            self.stream_of(A),
        )
        return outputs

    def dequantize_blockwise(
        self,
        out: Tensor,
        A: Tensor,
        absmax: Tensor,
        code: Tensor,
        blocksize: int,
        dtype: torch.dtype,
    ) -> Tensor:
        A, absmax, code = A.contiguous(), absmax.contiguous(), code.contiguous()
        self.ext.dequantize_blockwise(
            A.data_ptr(),
            absmax.data_ptr(),
            A.numel(),
            code.data_ptr(),
            blocksize,
            out.data_ptr(),
            DTYPES[dtype],
            self.stream_of(A),
        )
        return out

    def dequantize_blockwise_out(self, _: None, *args: Any, out: Tensor) -> None:
        self.dequantize_blockwise(out, *args)

    def int8_vectorwise_quant(
        self, outputs: Int8Quantized, A: Tensor, threshold: float = 0.0
    ) -> Int8Quantized:
        codes, stats, mask = outputs
        A = A.contiguous()
        self.ext.int8_vectorwise_quant(
            A.data_ptr(),
            DTYPES[A.dtype],
            *A.shape,
            threshold,
            codes.data_ptr(),
            stats.data_ptr(),
            _pointer(mask),
            self.stream_of(A),
        )
        return codes, stats, None if mask is None else mask.nonzero().view(-1)

    def int8_vectorwise_dequant(self, out: Tensor, A: Tensor, stats: Tensor) -> Tensor:
        A, stats = A.contiguous(), stats.contiguous()
        self.ext.int8_vectorwise_dequant(
            A.data_ptr(),
            stats.data_ptr(),
            stats.numel(),
            A.shape[-1],
            out.data_ptr(),
            self.stream_of(A),
        )
        return out

    def int8_double_quant(
        self,
        outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
        A: Tensor,
        threshold: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        rows, columns, row_stats, col_stats, mask = outputs
        A = A.contiguous()
        self.ext.int8_double_quant(
            A.data_ptr(),
            DTYPES[A.dtype],
            *A.shape,
            threshold,
            rows.data_ptr(),
            columns.data_ptr(),
            row_stats.data_ptr(),
            col_stats.data_ptr(),
            _pointer(mask),
            self.stream_of(A),
        )
        outliers = None if mask is None else mask.nonzero().view(-1)
        return rows, columns, row_stats, col_stats, outliers

    def int8_linear_matmul(self, out: Tensor, A: Tensor, B: Tensor) -> Tensor:
        A, B = A.contiguous(), B.contiguous()
        N, K = B.shape
        self.ext.int8_linear_matmul(
            A.data_ptr(),
            B.data_ptr(),
            out.numel() // max(N, 1),
            N,
            K,
            out.data_ptr(),
            self.stream_of(A),
        )
        return out

    def int8_linear_matmul_out(self, _: None, A: Tensor, B: Tensor, *, out: Tensor) -> None:
        self.int8_linear_matmul(out, A, B)

    def int8_mm_dequant(
        self,
        out: Tensor,
        A: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        dtype: torch.dtype | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        A, row_stats, col_stats = A.contiguous(), row_stats.contiguous(), col_stats.contiguous()
        bias = None if bias is None else bias.contiguous()
        self.ext.int8_mm_dequant(
            A.data_ptr(),
            row_stats.data_ptr(),
            col_stats.data_ptr(),
            row_stats.numel(),
            col_stats.numel(),
            _pointer(bias),
            0 if bias is None else DTYPES[bias.dtype],
            out.data_ptr(),
            DTYPES[out.dtype],
            self.stream_of(A),
        )
        return out

    def int8_scaled_mm(
        self,
        out: Tensor,
        A: Tensor,
        B: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        A, B = A.contiguous(), B.contiguous()
        row_stats, col_stats = row_stats.contiguous(), col_stats.contiguous()
        bias = None if bias is None else bias.contiguous()
        self.ext.int8_scaled_mm(
            A.data_ptr(),
            B.data_ptr(),
            row_stats.numel(),
            *B.shape,
            row_stats.data_ptr(),
            col_stats.data_ptr(),
            _pointer(bias),
            0 if bias is None else DTYPES[bias.dtype],
            out.data_ptr(),
            DTYPES[out.dtype],
            self.stream_of(A),
        )
        return out

    def int8_mixed_scaled_mm(
        self,
        outputs: tuple[Tensor, Tensor | None],
        A: Tensor,
        CA: Tensor,
        CB: Tensor,
        SCA: Tensor,
        SCB: Tensor,
        outlier_cols: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        out, columns = outputs
        A, CA, CB = A.contiguous(), CA.contiguous(), CB.contiguous()
        SCA, SCB = SCA.contiguous(), SCB.contiguous()
        bias = None if bias is None else bias.contiguous()
        if columns is not None and outlier_cols is not None:
            torch.index_select(A, 1, outlier_cols, out=columns)  # raises on an index out of range
            outlier_cols = outlier_cols.contiguous()
        self.ext.int8_mixed_scaled_mm(
            A.data_ptr(),
            DTYPES[A.dtype],
            CA.data_ptr(),
            CB.data_ptr(),
            CA.shape[0],
            *CB.shape,
            SCA.data_ptr(),
            SCB.data_ptr(),
            _pointer(outlier_cols),
            0 if outlier_cols is None else outlier_cols.numel(),
            _pointer(bias),
            0 if bias is None else DTYPES[bias.dtype],
            out.data_ptr(),
            self.stream_of(A),
        )
        return outputs

    def int8_linear(
        self,
        out: Tensor,
        A: Tensor,
        CB: Tensor,
        SCB: Tensor,
        threshold: float = 0.0,
        bias: Tensor | None = None,
    ) -> Tensor:
        A, CB, SCB = A.contiguous(), CB.contiguous(), SCB.contiguous()
        bias = None if bias is None else bias.contiguous()
        N, K = CB.shape
        M = out.numel() // N if N else 0
        codes, stats = A.new_empty(M, K, dtype=torch.int8), A.new_empty(M, dtype=torch.float32)
        mask = A.new_empty(K, dtype=torch.bool) if threshold > 0.0 else None
        self.ext.int8_linear(
            A.data_ptr(),
            DTYPES[A.dtype],
            M,
            N,
            K,
            CB.data_ptr(),
            SCB.data_ptr(),
            threshold,
            _pointer(bias),
            0 if bias is None else DTYPES[bias.dtype],
            codes.data_ptr(),
            stats.data_ptr(),
            _pointer(mask),
            out.data_ptr(),
            self.stream_of(A),
        )
        return out

    def estimate_quantiles(
        self, out: Tensor, A: Tensor, offset: float, num_quantiles: int
    ) -> Tensor:
        A = A.contiguous()
        size = self.ext.estimate_quantiles_workspace()
        workspace = A.new_empty(size, dtype=torch.int64) if size > 0 else None
        self.ext.estimate_quantiles(
            A.data_ptr(),
            DTYPES[A.dtype],
            A.numel(),
            offset,
            num_quantiles,
            out.data_ptr(),
            _pointer(workspace),
            self.stream_of(A),
        )
        return out

    def optimizer_update_32bit(self, update: OptimizerUpdate, *_: Any) -> None:
        self._update(self.ext.optimizer_update_32bit, update)

    def optimizer_update_blockwise(self, update: OptimizerUpdate, *_: Any) -> None:
        qmaps = [None if qmap is None else qmap.contiguous() for qmap in update.qmaps]
        self._update(self.ext.optimizer_update_blockwise, update, *map(_pointer, qmaps))

    def _update(self, kernel: Callable[..., int], update: OptimizerUpdate, *qmaps: int) -> None:
        """Call a kernel that checks the tensors of the lists as it reads them."""
        if update.p:
            rule = RULE_NUMBERS[update.optimizer_name]
            live, workspace = _pointer(update.live), self._workspace(update)
            stream = self.stream_of(update.p[0])
            wrong = kernel(rule, update, *qmaps, live, _pointer(workspace), stream)
            if wrong >= 0:
                update.refuse(wrong)

    def _workspace(self, update: OptimizerUpdate) -> Tensor | None:
        if update.live is None and not update.unorm_vec:
            return None
        size = sum(map(self.ext.update_workspace, map(Tensor.numel, update.p)))
        return torch.empty(size, dtype=torch.float64, device=update.p[0].device)
