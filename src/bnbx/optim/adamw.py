"""AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bnbx.optim.adam import Adam

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import ParamsT
    from typing_extensions import Unpack

    from bnbx.optim.settings import Options


class AdamW(Adam):
    """AdamW with states of 4, 8 or 32 bits: :class:`Adam`, with weight decay by default.

    The arguments are those of :class:`Adam`.

    References
    ----------
    Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | str = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        optim_bits: int = 32,
        args: Any = None,
        min_8bit_size: int = 4096,
        is_paged: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            optim_bits,
            args,
            min_8bit_size,
            is_paged,
            **options,
        )


class AdamW4bit(AdamW, bits=4):
    """AdamW with 4-bit states; the arguments are those of :class:`Adam`."""


class AdamW8bit(AdamW, bits=8):
    """AdamW with 8-bit states; the arguments are those of :class:`Adam`."""


class AdamW32bit(AdamW, bits=32):
    """AdamW with 32-bit states; the arguments are those of :class:`Adam`."""


class PagedAdamW(AdamW, paged=True):
    """AdamW with paged states; the arguments are those of :class:`Adam`."""


class PagedAdamW4bit(AdamW, bits=4, paged=True):
    """AdamW with paged 4-bit states; the arguments are those of :class:`Adam`."""


class PagedAdamW8bit(AdamW, bits=8, paged=True):
    """AdamW with paged 8-bit states; the arguments are those of :class:`Adam`."""


class PagedAdamW32bit(AdamW, bits=32, paged=True):
    """AdamW with paged 32-bit states; the arguments are those of :class:`Adam`."""
