"""What torch says about CUDA and ROCm."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class CUDASpecs:
    """The version of CUDA or ROCm, and the best of the GPUs.

    Attributes
    ----------
    highest_compute_capability
        Major and minor.
    cuda_version_string, cuda_version_tuple
        Such as ``"130"`` and ``(13, 0)``.
    """

    highest_compute_capability: tuple[int, int]
    cuda_version_string: str
    cuda_version_tuple: tuple[int, int]

    @property
    def has_imma(self) -> bool:
        """Whether it multiplies int8 matrices in tensor cores."""
        return bool(torch.version.hip) or self.highest_compute_capability >= (7, 5)


def get_compute_capabilities() -> list[tuple[int, int]]:
    """Return the compute capabilities of the visible GPUs, lowest first."""
    count = torch.cuda.device_count()
    return sorted(torch.cuda.get_device_capability(index) for index in range(count))


def get_cuda_version_tuple() -> tuple[int, int] | None:
    """Return major and minor of the CUDA or ROCm that torch was built with, None if there is none.

    Returns
    -------
    tuple of int, or None
        Such as ``(13, 0)``.
    """
    version = torch.version.cuda or torch.version.hip
    if not version:
        return None
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def get_cuda_version_string() -> str | None:
    """Return the same without a dot, such as ``"130"``."""
    version = get_cuda_version_tuple()
    return None if version is None else f"{version[0]}{version[1]}"


def get_cuda_specs() -> CUDASpecs | None:
    """Return what there is, None without a GPU that torch can use."""
    version, capabilities = get_cuda_version_tuple(), get_compute_capabilities()
    if version is None or not capabilities:
        return None
    return CUDASpecs(capabilities[-1], f"{version[0]}{version[1]}", version)


def get_rocm_gpu_arch() -> str:
    """Return the architecture of the first AMD GPU, such as ``"gfx942"``, or ``"unknown"``."""
    if not torch.version.hip or not torch.cuda.is_available():
        return "unknown"
    return str(torch.cuda.get_device_properties(0).gcnArchName).partition(":")[0]
