"""The virtual twin of a brain as a lazy array: every window is painted when it is read, as the volume would hold it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tera_mind.diffusion.steppers import StepperName
from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork
from tera_mind.model.checkpoint import Checkpoint, load_checkpoint
from tera_mind.model.devices import choose_device, choose_precision
from tera_mind.sampling.demand import Demand, Piece
from tera_mind.sampling.job import Generation, default_region, fingerprint
from tera_mind.sampling.kept import ByteCache
from tera_mind.sampling.lazy import LazyImage, Place, PooledLevel
from tera_mind.sampling.plain import to_uint8

#: least side of a chunk; it is a whole number of patches
CHUNK_PX = 512
#: chunks a side that are made together at most, so that a large window does not hold the states of all of it
PANEL = 4
#: memory for finished chunks and for the states of steps between
CACHE_BYTES = 2 * 2**30


class Twin(LazyImage):
    """A brain painted on demand: (stain, section, y, x) uint8, y and x from the region's corner, every section.

    A window is what `tera-mind generate` with the same settings writes there. Only the window's chunks and what they
    depend on are computed, the latest `cache_bytes` are kept. Threads may share it; pickled, it is opened anew from
    its files. Raises `InputError` where `cache_bytes` is negative.
    """

    def __init__(self, job: Generation, device: torch.device, cache_bytes: int = CACHE_BYTES) -> None:
        if cache_bytes < 0:
            raise InputError(f"cache_bytes must be 0 or more, got {cache_bytes}")
        model = job.checkpoint.info.model
        side = -(-CHUNK_PX // model.patch_px) * model.patch_px
        super().__init__(
            (model.stains, job.brain.shape[1], job.region.height, job.region.width),
            (model.stains, model.sections, side, side),
        )
        self.job = job
        self.device = device
        self.cache_bytes = cache_bytes
        #: blocks of patches that went through the network so far: the cost
        self.blocks_computed = 0
        # a finished chunk is worth all states it was made of, and far smaller: half of the memory is its own
        self._finished: ByteCache[NDArray[np.uint8]] = ByteCache(cache_bytes - cache_bytes // 2)
        self._states: ByteCache[Piece] = ByteCache(cache_bytes // 2)
        self._demands: dict[int, Demand] = {}
        network = job.network(device)
        if not isinstance(network, BlockNetwork):
            raise InputError(
                f"a twin denoises in steps, the checkpoint holds a {job.checkpoint.info.method} network, which paints "
                "in one pass: use tera-mind generate --region"
            )
        self._network = network
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Twin({str(self.job.brain.path)!r}, shape={self.shape}, region={self.region}, seed={self.job.seed})"

    def __reduce__(self) -> tuple[Any, ...]:
        job = self.job
        files = (job.checkpoint.path.resolve(), job.checkpoint.sha256, job.brain.path.resolve(), job.brain.fingerprint)
        names = (name for name in job.__dataclass_fields__ if name not in {"checkpoint", "brain"})
        settings = tuple((name, getattr(job, name)) for name in names)
        return _opened, (*files, settings, str(self.device), self.cache_bytes)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "tera_mind.Twin", fingerprint(self.job.facts(self.device))

    @property
    def region(self) -> Box:
        """Where the array lies, in the brain's pixels."""
        return self.job.region

    @property
    def stains(self) -> tuple[str, ...]:
        """Names along the first axis."""
        return self.job.checkpoint.info.stains

    @property
    def cached_bytes(self) -> int:
        """Memory that finished chunks and states take now."""
        return self._finished.bytes + self._states.bytes

    def multiscale(self, levels: int = 3) -> list[LazyImage]:
        """This array and `levels` - 1 coarser ones, each half the size of the one before, for viewers such as napari.

        A coarse pixel costs all fine pixels below it, so an overview of a brain costs the brain: levels are few by
        default, and a viewer should start zoomed in. Raises `InputError` where levels is below 1.
        """
        if levels < 1:
            raise InputError(f"an image has at least 1 level, asked for {levels}")
        return [self, *(PooledLevel(self, level) for level in range(1, levels))]

    def finished(self, place: Place) -> NDArray[np.uint8] | None:
        """A chunk that is in memory already, (stain, section, y, x), or None."""
        return self._finished.get(place)

    def read_chunks(self, places: list[Place]) -> Iterator[tuple[Place, NDArray[np.uint8]]]:
        missing: dict[Place, list[Place]] = {}
        for place in places:
            chunk = self._finished.get(place)
            if chunk is not None:
                yield place, chunk
            else:
                z, row, column = place
                missing.setdefault((z, row // PANEL, column // PANEL), []).append(place)
        for panel in missing.values():
            with self._lock:
                made = self._make(panel)
            yield from made.items()

    def _make(self, places: list[Place]) -> dict[Place, NDArray[np.uint8]]:
        """Chunks of one section group; those that another thread made meanwhile are taken over."""
        made = {place: chunk for place in places if (chunk := self._finished.get(place)) is not None}
        lacking = [place for place in places if place not in made]
        if lacking:
            images = self._demand(lacking[0][0]).make([self._patches(place) for place in lacking])
            for place, state in zip(lacking, images, strict=True):
                pixels: NDArray[np.uint8] = to_uint8(state).numpy()
                chunk = pixels.reshape(self.chunks[0], self.chunks[1], *pixels.shape[1:])
                chunk.flags.writeable = False
                made[place] = chunk
                self._finished.put(place, chunk, chunk.nbytes)
        return made

    def _demand(self, number: int) -> Demand:
        if number not in self._demands:
            group = self.job.groups[number]
            self._demands[number] = Demand(
                self._network,
                self.job.counts(group),
                self.job.noise(group),
                self.job.domain(group),
                self.job.settings,
                self._states,
                self.device,
                self._count,
                number,
            )
        return self._demands[number]

    def _count(self) -> None:
        self.blocks_computed += 1

    def _patches(self, place: Place) -> Box:
        """A chunk's patches of the region."""
        patch_px = self.job.checkpoint.info.model.patch_px
        side = self.chunks[2] // patch_px
        box = Box(place[1] * side, (place[1] + 1) * side, place[2] * side, (place[2] + 1) * side)
        return box.intersect(Box(0, self.shape[2] // patch_px, 0, self.shape[3] // patch_px))


@lru_cache(maxsize=2)
def _opened(
    checkpoint: Path,
    sha256: str,
    brain: Path,
    brain_fingerprint: str,
    settings: tuple[tuple[str, Any], ...],
    device: str,
    cache_bytes: int,
) -> Twin:
    """A twin that came from another process; tasks that bring the same one share it and what it made."""
    job = Generation(load_checkpoint(checkpoint), Brain.open(brain), **dict(settings))
    if (job.checkpoint.sha256, job.brain.fingerprint) != (sha256, brain_fingerprint):
        raise InputError(f"{checkpoint} or {brain} was changed since the twin was opened; open the twin again")
    return Twin(job, torch.device(device), cache_bytes)


def open_twin(
    checkpoint: str | os.PathLike[str] | Checkpoint,
    brain: str | os.PathLike[str] | Brain,
    *,
    seed: int = 0,
    steps: int = 15,
    stepper: StepperName = "ddim",
    eta: float = 0.0,
    genes: str = "as measured",
    region: Box | str | None = None,
    masked: bool = True,
    block: int = 8,
    micro_batch: int = 1,
    device: str = "auto",
    precision: Literal["auto", "32", "bf16"] = "auto",
    allow_missing_genes: bool = False,
    cache_bytes: int = CACHE_BYTES,
) -> Twin:
    """The twin of a brain as a lazy array (stain, section, y, x) uint8; opening computes nothing.

    checkpoint, brain: paths (or opened); region: a box in the brain's pixels, or text as for `tera-mind generate
    --region` (default: the canvas), cut to whole patches; the other settings are those of `tera-mind generate`;
    cache_bytes: memory for what was made. Raises `MissingFileError`, `FormatError`, `PanelMismatchError` or
    `InputError` where these cannot be opened or do not fit together.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(Path(checkpoint))
    brain = brain if isinstance(brain, Brain) else Brain.open(Path(brain))
    where = choose_device(device)
    wanted = Box.parse(region, brain.canvas, brain.pixel_um) if isinstance(region, str) else region
    job = Generation(
        checkpoint,
        brain,
        default_region(brain, checkpoint.info.model.patch_px, wanted),
        tuple(range(brain.shape[1])),
        genes=genes,
        seed=seed,
        steps=steps,
        stepper=stepper,
        eta=eta,
        block_rows=block,
        block_columns=block,
        micro_batch=micro_batch,
        masked=masked,
        precision=choose_precision(precision, where),
        allow_missing_genes=allow_missing_genes,
    )
    return Twin(job, where, cache_bytes)
