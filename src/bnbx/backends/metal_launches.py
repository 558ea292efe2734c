"""Launches on PyTorch's own stream of an Apple GPU, by torch.mps.compile_shader.

The kernels are one text, which is compiled at the first use. A launch binds tensors as they lie in
memory, an int as int64 and a float as float32; scalars of a kernel with many travel as a list.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

#: Threads of a group, and of a SIMD-group: kThreads and kLanes of kernels/metal/device.h.
THREADS, LANES = 256, 32
#: SIMD-groups of a group.
SIMDS = THREADS // LANES


def compiled(ext: ModuleType) -> Any:
    """Return the library of the kernels that lie beside the module, compiled for this GPU."""
    source = Path(str(ext.__file__)).with_name("bnbx.metal").read_text(encoding="ascii")
    return torch.mps.compile_shader(source)


class MetalLaunches:
    """The library of kernels, compiled when it is needed, and launches of what it has.

    Parameters
    ----------
    ext
        The module with what the host computes.
    make_library
        Returns the kernels by their names; it is called with the module at the first launch.
    """

    def __init__(self, ext: ModuleType, make_library: Callable[[Any], Any] = compiled) -> None:
        self.ext: Any = ext
        self._make_library = make_library
        self._kernels: dict[str, Any] = {}

    @functools.cached_property
    def library(self) -> Any:
        """The kernels by their names."""
        return self._make_library(self.ext)

    def kernel(self, method: str) -> Callable[..., Any]:
        """Return what the dispatcher calls for the operation of a method."""
        function: Callable[..., Any] = getattr(self, method)
        return function

    def launch(self, name: str, groups: int, *arguments: Any) -> None:
        """Run a kernel in groups of threads, unless there are none."""
        if groups == 0:
            return
        kernel = self._kernels.get(name)
        if kernel is None:
            kernel = self._kernels[name] = getattr(self.library, name)
        kernel(*arguments, threads=groups * THREADS, group_size=THREADS)

    def launch_for(self, name: str, dtype: torch.dtype, groups: int, *arguments: Any) -> None:
        """Run the instance of a kernel for a dtype."""
        self.launch(f"{name}_{str(dtype).removeprefix('torch.')}", groups, *arguments)
