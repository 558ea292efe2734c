"""The speed that each operation is to have, and whether it has it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from side_by_side.steps import FUSED

if TYPE_CHECKING:
    from side_by_side.comparison import Result

#: Ratios that differ by less are the same: two equal sides come out this far apart.
TOLERANCE = 1.02


@dataclasses.dataclass(frozen=True)
class Bar:
    """The most that an operation may take.

    Attributes
    ----------
    name
        Of the result.
    factor
        Multiple of the other side's time.
    other
        A side; None for the limit.
    """

    name: str
    factor: float
    other: str | None = None

    def __str__(self) -> str:
        """Say it as people do."""
        other = self.other or "limit"
        if self.factor < 1:
            return f"{1 / self.factor:.3g}x faster than {other}"
        return f"at most {self.factor:.3g}x {other}"

    def ratio(self, result: Result, statistic: str) -> float | None:
        """Return bnbx's time as a multiple of the other's, or None if one was not timed."""
        if result.ours is None or (self.other is not None and self.other not in result.times):
            return None
        return result.ratio(result.ours, self.other, statistic)

    def verdict(self, result: Result) -> str:
        """Return whether the median of bnbx's times is below the bar."""
        ratio = self.ratio(result, "median")
        if ratio is None:
            return "not measured"
        return (
            "met" if ratio <= self.factor * TOLERANCE else f"missed by {ratio / self.factor:.2f}x"
        )


DENSE = "torch bf16"
BARS = (
    Bar("quantize_4bit", 2),
    Bar("dequantize_4bit", 1.5),
    Bar("quantize_blockwise", 3),
    Bar("dequantize_blockwise", 1.5),
    Bar("gemm_4bit M=1", 1 / 3, DENSE),
    Bar("gemm_4bit M=8", 1 / 1.5, DENSE),
    Bar("gemm_4bit M=64", 1.1, DENSE),
    Bar("gemm_4bit M=512", 1.1, DENSE),
    Bar("Linear8bitLt M=1 threshold=0", 1 / 1.8, DENSE),
    Bar("Linear8bitLt M=1 threshold=6", 1 / 1.8, DENSE),
    Bar("Linear8bitLt M=512 threshold=0", 1 / 1.3, DENSE),
    Bar("Linear8bitLt M=512 threshold=6", 1, DENSE),
    Bar("Linear4bit forward+gradient M=512", 1.25, DENSE),
    Bar("Linear4bit 64x64 M=1", 3, DENSE),
    Bar("Adam8bit 16M", 1, FUSED),
    Bar("AdamW8bit 16M", 1, FUSED),
    Bar("Adam32bit 16M", 1, FUSED),
    Bar("Lion8bit 16M", 1, FUSED),
    Bar("SGD8bit 16M", 1, FUSED),
    Bar("AdEMAMix8bit 16M", 1, FUSED),
    Bar("Adam8bit 300 x 50k", 1, FUSED),
    Bar("AdamW8bit 300 x 50k", 1, FUSED),
    Bar("Lion8bit 300 x 50k", 1, FUSED),
    Bar("SGD8bit 300 x 50k", 1, FUSED),
    Bar("AdEMAMix8bit 300 x 50k", 1, FUSED),
)
