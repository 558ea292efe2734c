"""Fixtures that every test shares."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest
import torch
from tests.ops.on_device import OnDevice

from bnbx.backends import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterator

_CPU = next(b for b in BACKENDS if b.device_type == "cpu")
#: What the CPU operations can run on here: the kernels' instruction sets, or plain PyTorch alone;
#: with BNBX_SIMT=1 the ways of the emulator to run the kernels for GPUs.
ISAS: list[str] = _CPU.details.get("available_isas", ["reference"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        action="append",
        metavar="DEVICE",
        help="torch device that tests of operations run on, and tests with a `device` fixture; "
        "may be repeated (cpu)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    devices = metafunc.config.getoption("--device") or ["cpu"]
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", devices)
    if "isa" in metafunc.fixturenames:
        others = [device for device in devices if device != "cpu"]
        isas = [*(ISAS if "cpu" in devices else ()), *others]
        metafunc.parametrize("isa", isas, indirect=True)


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per instruction set of this machine, with the kernels forced to it."""
    if request.param == "reference":
        yield "reference"
        return
    if request.param not in ISAS:  # a device
        with OnDevice(request.param):
            yield request.param
        return
    ext = importlib.import_module(f"bnbx._ext._{_CPU.name}")
    chosen = ext.describe()["isa"]
    ext.select_isa(request.param)
    yield request.param
    ext.select_isa(chosen)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
