"""One fixture for what every module with a quantized weight must do."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bnbx import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ROWS, COLUMNS = 24, 192


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of module, how to make one and what to call it with."""

    name: str
    make: Callable[..., Any]

    @property
    def is_linear(self) -> bool:
        return "linear" in self.name

    @property
    def is_4bit(self) -> bool:
        return "int8" not in self.name

    def fresh(self) -> Any:
        """Return a module that is not quantized yet."""
        return self.make()

    def quantized(self, device: str = "cpu") -> Any:
        return self.make().to(device)

    def input(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        if self.is_linear:
            return torch.randn(2, 3, COLUMNS, device=device).to(dtype)
        return torch.randint(0, ROWS, (2, 5), device=device)


KINDS = [
    Kind("linear nf4 nested", lambda **k: nn.LinearNF4(COLUMNS, ROWS, **k)),
    Kind(
        "linear fp4 in bfloat16",
        lambda **k: nn.LinearFP4(
            *(COLUMNS, ROWS),
            compress_statistics=False,
            quant_storage=torch.bfloat16,
            **k,
        ),
    ),
    Kind(
        "linear nf4 of 128",
        lambda **k: nn.Linear4bit(COLUMNS, ROWS, quant_type="nf4", blocksize=128, **k),
    ),
    Kind(
        "linear int8",
        lambda **k: nn.Linear8bitLt(COLUMNS, ROWS, has_fp16_weights=False, **k),
    ),
    Kind(
        "linear int8 with outliers",
        lambda **k: nn.Linear8bitLt(COLUMNS, ROWS, has_fp16_weights=False, threshold=2.0, **k),
    ),
    Kind("embedding fp4", lambda **k: nn.EmbeddingFP4(ROWS, COLUMNS, **k)),
    Kind(
        "embedding nf4 nested, odd",
        lambda **k: nn.EmbeddingNF4(
            ROWS, 33, compress_statistics=True, quant_storage=torch.float32, **k
        ),
    ),
    Kind("embedding int8", lambda **k: nn.Embedding8bit(ROWS, COLUMNS, **k)),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def kinds() -> list[Kind]:
    return KINDS


def _bits(value: Any) -> Any:
    """Return a tensor's bytes, so that packed codes that look like NaN compare."""
    value = value.detach()
    return value.dtype, tuple(value.shape), value.cpu().contiguous().view(-1).view(torch.uint8)


@pytest.fixture
def same() -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """Return whether two state_dicts have the same keys, in order, and the same bits."""

    def compare(a: dict[str, Any], b: dict[str, Any]) -> bool:
        if list(a) != list(b):
            return False
        pairs = [(_bits(a[key]), _bits(b[key])) for key in a]
        return all(x[:2] == y[:2] and torch.equal(x[2], y[2]) for x, y in pairs)

    return compare


@pytest.fixture
def saved() -> Callable[[Any], dict[str, Any]]:
    """Return a copy of a module's state_dict that later changes of the module do not reach."""

    def save(module: Any) -> dict[str, Any]:
        return {key: value.detach().clone() for key, value in module.state_dict().items()}

    return save
