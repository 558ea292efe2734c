"""What the parameters that hold quantized weights have in common."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

#: Attributes that belong to one parameter and are made anew for another one.
OWN_ATTRIBUTES = frozenset({"module", "CB", "data", "requires_grad"})
_CUTS = (torch.chunk, torch.split, torch.Tensor.chunk, torch.Tensor.split)


class QuantizedParameter(torch.nn.Parameter):
    """A weight that is quantized when it is moved to a device, and then keeps its bytes.

    Three rules hold for it. Moving it to another dtype does not touch quantized data. Assigning to
    ``.data`` moves the statistics to where the data is, and takes those of the parameter assigned,
    so that ``module.to(device)`` works in any module. A copy is its own parameter: it never changes
    the statistics of the one it was made from.
    """

    #: What a new parameter takes over from one that is assigned to its ``.data``.
    SETTINGS: ClassVar[tuple[str, ...]]

    @property
    def holds_codes(self) -> bool:
        """Whether the data is quantized, not the weight in floating point."""
        raise NotImplementedError

    @property
    def quantizes_on_move(self) -> bool:
        """Whether a floating point weight is quantized when it is moved to a device."""
        return True

    def _quantize(self, weight: Tensor) -> Self:
        """Replace the data by the codes of ``weight``, which is its value on another device."""
        raise NotImplementedError

    def dequantize(self) -> Tensor:
        """Return the weight in floating point."""
        raise NotImplementedError

    def statistics(self) -> list[Tensor]:
        """Return the tensors that undo the quantization together with the data."""
        raise NotImplementedError

    def _follow(self, device: torch.device) -> None:
        """Bring the statistics to where new data has been put."""
        raise NotImplementedError

    def _piece(self, view: Tensor) -> Tensor:
        """Return a view of a part of the data as a parameter with that part's statistics."""
        raise NotImplementedError

    def plain(self) -> Tensor:
        """Return the data as an ordinary tensor, like ``.data`` but faster."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.data

    def replace_data(self, data: Tensor) -> None:
        """Replace the data and nothing else."""
        with torch._C.DisableTorchFunctionSubclass():
            if not data.is_floating_point():
                self.requires_grad_(False)
            self.data = data

    def settings(self) -> dict[str, Any]:
        """Return the constructor's keywords that make a like parameter for other data."""
        return {k: v for k, v in self.__dict__.items() if k not in OWN_ATTRIBUTES}

    def like(self, data: Tensor, **changes: Any) -> Self:
        """Return a parameter of the same settings with other data; it belongs to no module."""
        return type(self)(
            data, **{**self.settings(), "requires_grad": self.requires_grad, **changes}
        )

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> Self:
        """Move to a device, which quantizes a weight that is not yet, or to a dtype.

        Parameters
        ----------
        args, copy, kwargs
            As for ``torch.Tensor.to``. A quantized weight keeps its dtype.

        Returns
        -------
        Self
            This parameter if it was quantized by the move or if nothing had to be done, else a new
            one. To the meta device only the data is moved: the statistics stay, so that data put
            in its place later still has them.
        """
        device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        data = self.plain()
        if self.holds_codes:
            moved = data.to(device or data.device, non_blocking=non_blocking, copy=copy)
        else:
            moved = data.to(*args, copy=copy, **kwargs)  # type: ignore[call-overload]
            if device is not None and device.type != "meta" and self.quantizes_on_move:
                return self._quantize(moved)
        if moved is data:
            return self
        new = self.like(moved)
        new._follow(moved.device)
        return new

    def cpu(self, *args: Any, **kwargs: Any) -> Self:
        """Move to the CPU, as ``to`` does."""
        return self.to("cpu", *args, **kwargs)

    def cuda(  # type: ignore[override]
        self, device: torch.device | str | int | None = None, non_blocking: bool = False
    ) -> Self:
        """Move to a CUDA device, as ``to`` does."""
        return self.to("cuda" if device is None else device, non_blocking=non_blocking)

    def xpu(  # type: ignore[override]
        self, device: torch.device | str | int | None = None, non_blocking: bool = False
    ) -> Self:
        """Move to an Intel GPU, as ``to`` does."""
        return self.to("xpu" if device is None else device, non_blocking=non_blocking)

    def half(self) -> Self:
        """Convert to float16, unless it is quantized."""
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """Convert to bfloat16, unless it is quantized."""
        return self.to(torch.bfloat16)

    def float(self) -> Self:
        """Convert to float32, unless it is quantized."""
        return self.to(torch.float32)

    def double(self) -> Self:
        """Convert to float64, unless it is quantized."""
        return self.to(torch.float64)

    def type(self, dtype: Any = None, non_blocking: bool = False) -> Any:
        """Return the type's name, or convert to a dtype, unless it is quantized."""
        if dtype is None or not self.holds_codes:
            return super().type(dtype, non_blocking)
        return self

    def __copy__(self) -> Self:
        return self.like(self.plain())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Without the module: if that is being copied, its copy adopts this one.
        settings = copy.deepcopy(self.settings(), memo)
        new = self.like(self.plain().clone(memory_format=torch.preserve_format), **settings)
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        settings = {**self.settings(), "requires_grad": self.requires_grad}
        return _rebuild, (type(self), self.plain(), settings)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if func in _CUTS:
            whole: Any = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
            return tuple(whole._piece(view) for view in result)
        if func == _SET_DATA and isinstance(args[0], cls):
            args[0].adopt(args[1])
        return result

    def adopt(self, data: Tensor) -> None:
        """Adapt to data that has been assigned, and to its settings if it is such a parameter."""
        if isinstance(data, type(self)):
            for name in self.SETTINGS:
                setattr(self, name, getattr(data, name))
        self._follow(data.device)


_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]


def _rebuild(
    cls: type[QuantizedParameter], data: Tensor, settings: dict[str, Any]
) -> QuantizedParameter:
    return cls(data, **settings)
