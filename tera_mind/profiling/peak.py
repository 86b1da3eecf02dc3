"""Peak arithmetic of a device: data sheets for GPUs, a measured matrix product for CPUs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from tera_mind.model.fast import Precision

#: part of a GPU's name -> dense FLOP/s with (bf16 tensor cores, TF32 tensor cores), from NVIDIA's data sheets of the
#: product ("H100 Tensor Core GPU", "A100 Tensor Core GPU", ...; figures with sparsity there are halved here). Longer
#: names first: the first that is found counts.
GPU_PEAKS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "B200": (2250e12, 1125e12),
        "H200 NVL": (835.5e12, 417.5e12),
        "H200": (989.5e12, 494.7e12),
        "H100 NVL": (835.5e12, 417.5e12),
        "H100 PCIe": (756e12, 378e12),
        "H100": (989.5e12, 494.7e12),
        "A100": (312e12, 156e12),
        "A40": (149.7e12, 74.8e12),
        "A30": (165e12, 82e12),
        "A10": (125e12, 62.5e12),
        "L40S": (362.05e12, 183e12),
        "L4": (121e12, 60e12),
    }
)
#: side and turns of the product by which a CPU's peak is measured, and seconds after which it ends
_SIDE, _TURNS, _LIMIT_S = 2048, 5, 4.0


@dataclass(frozen=True)
class Peak:
    """Highest FLOP/s of a device in a precision, and where the figure is from; None where it is not known."""

    flop_s: float | None
    source: str


def peak(device: torch.device, precision: Precision) -> Peak:
    """Peak of a device; float32 on a GPU is TF32, which PyTorch's convolutions use."""
    if device.type != "cuda":
        return measured_peak(precision)
    return data_sheet_peak(torch.cuda.get_device_name(device), precision)


def data_sheet_peak(name: str, precision: Precision) -> Peak:
    """Peak of a GPU by its name."""
    for part, (bf16, tf32) in GPU_PEAKS.items():
        if all(word in name for word in part.split()):
            kind = "bf16" if precision == "bf16" else "TF32"
            return Peak(bf16 if precision == "bf16" else tf32, f"NVIDIA's data sheet of the {part}, dense {kind}")
    return Peak(None, f"no data sheet for {name!r} in the table")


def measured_peak(precision: Precision) -> Peak:
    """The fastest of some square matrix products on the CPU, with the threads that PyTorch has."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
    fastest, start = float("inf"), time.perf_counter()
    for _ in range(_TURNS):
        began = time.perf_counter()
        torch.mm(a, b)
        ended = time.perf_counter()
        fastest = min(fastest, ended - began)
        if ended - start > _LIMIT_S:
            break
    words = f"measured: {_SIDE} x {_SIDE} matrix product, {str(dtype).removeprefix('torch.')}"
    return Peak(2 * _SIDE**3 / fastest, f"{words}, {torch.get_num_threads()} threads")
