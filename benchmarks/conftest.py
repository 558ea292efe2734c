"""The thread count of the pytest benchmarks, and fresh data that is the same from run to run."""

from __future__ import annotations

import pytest
import torch

from common import default_threads, set_threads


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=default_threads(), help="threads of a kernel")


@pytest.fixture(autouse=True)
def _setup(request: pytest.FixtureRequest) -> None:
    set_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
