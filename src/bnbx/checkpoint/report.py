"""What ``quantize_checkpoint`` tells about its work."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from bnbx.checkpoint.layers import EXPERTS
from bnbx.checkpoint.tensor_file import printable
from bnbx.table import readable, table

WHEN = ("before", "after")
#: What quantizes experts, which no loader of quantized checkpoints does.
QUANTIZE_EXPERTS = 'bnbx.quantize_(model, "nf4", skip="lm_head").'


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """What happened to one tensor.

    Attributes
    ----------
    name
        In the source.
    shape, dtype
        In the source.
    kind
        ``"nf4"``, ``"fp4"``, ``"int8"`` or ``"kept"``.
    reason
        Why it is kept; nothing if it is quantized.
    bytes_before, bytes_after
        In the files, with all that belongs to it, without the headers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    reason: str
    bytes_before: int
    bytes_after: int


@dataclasses.dataclass(frozen=True)
class CheckpointReport:
    """What ``quantize_checkpoint`` did; ``str(report)`` is a table.

    Attributes
    ----------
    tensors
        All tensors of the source.
    layers_from
        ``"model"`` or ``"names"``: what said which tensors are weights of linear layers.
    files
        Names of the files that were written.
    left_out
        Names of what in the source directory was not copied.
    metadata_left_out
        Names of what the headers of the source's files say differently; all else is kept.
    unused_skips
        Entries of ``skip`` that no layer has as its name, perhaps misspelt.
    seconds
        Time that it took.
    """

    tensors: tuple[TensorReport, ...]
    layers_from: str
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    metadata_left_out: tuple[str, ...]
    unused_skips: tuple[str, ...]
    seconds: float

    @property
    def quantized(self) -> tuple[TensorReport, ...]:
        """The tensors that were quantized."""
        return tuple(tensor for tensor in self.tensors if tensor.kind != "kept")

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the tensors with experts, which are kept; ``*`` stands for all numbers."""
        names = (tensor.name for tensor in self.tensors if tensor.reason == EXPERTS)
        return tuple(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))

    @property
    def bytes_before(self) -> int:
        """Bytes of all tensors in the source."""
        return sum(tensor.bytes_before for tensor in self.tensors)

    @property
    def bytes_after(self) -> int:
        """Bytes of all tensors in the result."""
        return sum(tensor.bytes_after for tensor in self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        totals = {"bytes_before": self.bytes_before, "bytes_after": self.bytes_after}
        return {**dataclasses.asdict(self), **totals}

    def __str__(self) -> str:
        kinds = dict.fromkeys((tensor.kind, tensor.reason) for tensor in self.tensors)
        rows = [("", "tensors", "before", "after")]
        for kind, reason in sorted(kinds, key=lambda key: key[0] == "kept"):
            group = [t for t in self.tensors if (t.kind, t.reason) == (kind, reason)]
            before, after = (sum(getattr(t, f"bytes_{when}") for t in group) for when in WHEN)
            title = f"{kind}: {reason}" if reason else kind
            rows.append((title, str(len(group)), readable(before), readable(after)))
        total = readable(self.bytes_before), readable(self.bytes_after)
        rows.append(("total", str(len(self.tensors)), *total))
        lines = [table(rows, left=1)]
        how = "by transformers' model" if self.layers_from == "model" else "by their names"
        lines.append(f"Linear layers were told {how}; {self.seconds:.1f} s.")
        if self.experts:
            names = ", ".join(printable(name) for name in self.experts)
            lines.append(f"Experts stay as they are: {names}")
            lines.append(f"To have them in 4 bits, load the result and call {QUANTIZE_EXPERTS}")
        if self.left_out:
            lines.append("Not copied: " + ", ".join(printable(name) for name in self.left_out))
        if self.metadata_left_out:
            names = ", ".join(printable(name) for name in self.metadata_left_out)
            lines.append(f"Metadata not kept, because the files of the source differ: {names}")
        lines += [f"skip entry {entry!r} is the name of no layer" for entry in self.unused_skips]
        return "\n".join(lines)
