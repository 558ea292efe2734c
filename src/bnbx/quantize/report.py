"""What ``quantize_`` tells about its work."""

from __future__ import annotations

import dataclasses

from bnbx.table import readable, table


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What happened to one layer.

    Attributes
    ----------
    name, kind, shape
        Name in the model; ``"nf4"``, ``"fp4"`` or ``"int8"``; shape of the weight.
    bytes_before, bytes_after
        Memory of the weight, and of its codes and statistics; without the bias. Both are 0 for a
        weight that is tied to the one of a layer listed before.
    relative_error
        Frobenius norm of the weight's change over that of the weight.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int
    relative_error: float


@dataclasses.dataclass(frozen=True)
class QuantizationReport:
    """What ``quantize_`` did; ``str(report)`` is a table.

    Attributes
    ----------
    layers
        The quantized layers, in the model's order.
    skipped
        Name and reason of each layer that was left, though it is a linear one or looks like one.
    unused_skips
        Entries of ``skip`` that no layer has as its name, perhaps misspelt.
    """

    layers: tuple[LayerReport, ...]
    skipped: dict[str, str]
    unused_skips: tuple[str, ...]

    @property
    def bytes_before(self) -> int:
        """Memory that the quantized layers' weights took, in bytes."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Memory that they take now, in bytes."""
        return sum(layer.bytes_after for layer in self.layers)

    def __str__(self) -> str:
        total = f"{len(self.layers)} layers"
        rows = [("layer", "kind", "shape", "before", "after", "error")]
        for layer in self.layers:
            shape = "x".join(str(size) for size in layer.shape)
            sizes = readable(layer.bytes_before), readable(layer.bytes_after)
            rows.append((layer.name, layer.kind, shape, *sizes, f"{layer.relative_error:.4f}"))
        rows.append((total, "", "", readable(self.bytes_before), readable(self.bytes_after), ""))
        lines = [table(rows, left=2)]
        lines += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"skip entry {entry!r} is the name of no layer" for entry in self.unused_skips]
        return "\n".join(lines)
