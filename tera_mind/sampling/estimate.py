"""What a job costs: one micro-batch timed on the device, and the largest micro-batch that fits there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from tera_mind.errors import TeraMindError
from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork
from tera_mind.model.fast import FastNetwork, fastest_patches
from tera_mind.sampling.finite import Finite
from tera_mind.sampling.job import Generation
from tera_mind.sampling.oneshot import keyed_planes, paint
from tera_mind.sampling.worker import is_out_of_memory

#: share of the free memory of a GPU that a search may take
MEMORY_SHARE = 0.6


@dataclass(frozen=True)
class Pass:
    """One timed micro-batch: seconds a block, and the device's peak memory (0 where unknown)."""

    seconds: float
    memory_bytes: int


def time_pass(job: Generation, device: torch.device) -> Pass:
    """Time a micro-batch of noise with the genes of the region's first block; an untimed one before warms up.

    Raises `TeraMindError` where it does not fit into memory.
    """
    run = _one_pass(job, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.no_grad():
        _finished(run, device)
        begun = time.monotonic()
        _finished(run, device)
    seconds = time.monotonic() - begun
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Pass(seconds / job.micro_batch, peak)


def rehearse(job: Generation, device: torch.device) -> None:
    """Read the genes of every section group at the region's first block, and compute that block of the first group.

    What cannot be done is known then, before a volume is replaced. Raises what the readers and the network raise, and
    `NotFiniteError` where its values are no finite numbers.
    """
    side = job.checkpoint.info.model.patch_px
    box = Box(0, job.block_rows * side, 0, job.block_columns * side).shift(job.region.y0, job.region.x0)
    for group in job.groups:
        job.counts(group)(box)
    finite = Finite(job.settings.steps)
    with torch.no_grad():
        outputs = _one_pass(job, device)()
    finite.see([1] * len(outputs), [box] * len(outputs), outputs)
    finite.check()


def _one_pass(job: Generation, device: torch.device) -> Callable[[], Tensor]:
    """One micro-batch of the region's first block, everything it reads in memory."""
    network, side = job.network(device), job.checkpoint.info.model.patch_px
    box = Box(0, job.block_rows * side, 0, job.block_columns * side).shift(job.region.y0, job.region.x0)
    counts = job.counts(job.groups[0])
    if not isinstance(network, BlockNetwork):
        return partial(paint, network, counts, keyed_planes(job.seed, job.groups[0]), box)
    window = box.grow(network.halo_px)
    x = torch.randn((job.micro_batch, network.channels, window.height, window.width), device=device)
    genes = counts(window)[None].expand(job.micro_batch, -1, -1, -1, -1)
    return partial(network.predict, x, torch.full((job.micro_batch,), 500), genes)


def _finished(run: Callable[[], Tensor], device: torch.device) -> None:
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fitting(job: Generation, device: torch.device) -> Generation:
    """The job with its micro-batch halved until one pass fits into memory.

    Raises `TeraMindError` where not even one block does.
    """
    while True:
        try:
            time_pass(job, device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return job
        if job.micro_batch == 1:
            raise TeraMindError(
                f"one block of {job.block_rows} x {job.block_columns} patches does not fit into the memory of "
                f"{device}: give a smaller --block"
            )
        job = replace(job, micro_batch=job.micro_batch // 2)


def with_fastest_patches(job: Generation, device: torch.device) -> Generation:
    """The job with the number of patches at once that is fastest on a GPU; as it is for CPUs and other methods."""
    if device.type != "cuda":
        return job
    network = job.network(device)
    if not isinstance(network, FastNetwork):
        return job
    free, _ = torch.cuda.mem_get_info(device)
    return replace(job, patches_at_once=fastest_patches(network, device, int(MEMORY_SHARE * free)))
