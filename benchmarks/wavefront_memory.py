"""Memory of a sweep in a process of its own: the peak above what the process had before, beside what is predicted.

python benchmarks/wavefront_memory.py WIDTH_PX HEIGHT_PX STEPS    prints one line of JSON
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tera_mind.geometry import Box, SectionGroup
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.memory import memory_bytes
from tera_mind.sampling.plain import SamplerSettings, box_noise
from tera_mind.sampling.skew import Skew
from tera_mind.sampling.wavefront import sweep

PATCH_PX, BIN_PX, STAINS, GENES = 64, 16, 2, 8
BLOCK = 4


class TinyNetwork:
    """Looks half a patch around and has no activations to speak of: what is measured is the sampler."""

    patch_px, bin_px, halo_px, channels, training = PATCH_PX, BIN_PX, PATCH_PX // 2, 2 * STAINS, False

    def predict(self, window: torch.Tensor, t: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        halo, shift = self.halo_px, 1e-3 * float(counts[0, 0, 0, 0, 0]) + 1e-6 * float(t[0])
        return window[..., halo:-halo, halo:-halo].mul(0.5).add_(window[..., 2 * halo :, 2 * halo :], alpha=0.1) + shift


def memory_of(status: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{status}:"))


def counts(box: Box) -> torch.Tensor:
    return torch.ones(GENES, 4, box.height // BIN_PX, box.width // BIN_PX)


def measure(width: int, height: int, steps: int) -> dict[str, Any]:
    """Sweep a strip and compare its peak with the plan's prediction, both in bytes."""
    network, settings = TinyNetwork(), SamplerSettings("v", steps, "ddim", 0.0, BLOCK, BLOCK)
    noise = box_noise(0, SectionGroup((0, 1), (-1, 0, 1, 2)), STAINS)

    def run(region: Box) -> int:
        domain = Domain.whole(region, PATCH_PX)
        return sum(piece.numel() for _, piece in sweep(network, counts, noise, domain, settings))

    run(Box(0, BLOCK * PATCH_PX, 0, 2 * BLOCK * PATCH_PX))  # libraries and their first temporaries are not the sweep's
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = memory_of("VmRSS")
    region = Box(0, height, 0, width)
    voxels = run(region)
    skew = Skew.of(settings, PATCH_PX, network.halo_px, (height // PATCH_PX, width // PATCH_PX))
    predicted = memory_bytes(
        skew, settings, patch_px=PATCH_PX, halo_px=network.halo_px, bin_px=BIN_PX, channels=network.channels,
        genes=GENES, gene_sections=4,
    )  # fmt: skip
    peak = memory_of("VmHWM") - before
    return {"width": width, "height": height, "voxels": voxels, "peak": peak, "predicted": predicted}


def measured(width: int, height: int, steps: int) -> dict[str, Any]:
    """`measure` in a fresh process, where the C library gives freed planes back at once instead of hoarding them."""
    given = [sys.executable, __file__, str(width), str(height), str(steps)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(given, capture_output=True, text=True, check=True, env=environment)  # noqa: S603
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(*map(int, sys.argv[1:4]))))
