"""Fixed regions of the validation tissue, painted with the model as it is, for all callbacks that look at pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import lightning
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from datamodules.pairs import PairsDataModule
from tera_mind.errors import InputError
from tera_mind.formats.panel import panel_map
from tera_mind.formats.slab import Slab
from tera_mind.formats.transcripts import Transcripts, bin_transcripts
from tera_mind.geometry import Box, SectionGroup, section_window
from tera_mind.model.blocks import BlockNetwork, Painter
from tera_mind.module import MethodModule
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.oneshot import keyed_planes, paint_region
from tera_mind.sampling.plain import SamplerSettings, box_noise, sample_steps, to_uint8

#: slabs that are looked at for each region that is kept
_LOOKED_AT = 4
#: callbacks that need regions, as a refusal names them
_PAINTING = "DDIMSampling, Morphometrics, StepsAblation"
#: seed of the noise of all pictures: the same at every validation, so that only the model differs
SEED = 0


@dataclass(frozen=True)
class Region:
    """A square of whole patches of one validation slab: where it is, its genes, and its real image.

    `real` is uint8 (stain, section, y, x); `exists` says which image sections the brain has; `inside` is the part of
    the box that lies on the canvas.
    """

    slab: Slab
    number: int
    box: Box
    group: SectionGroup
    new_gene: NDArray[np.int32] | None
    genes: int
    bin_px: int
    #: side of a training crop, the whole patch on which pictures are scored whatever the method's own patch is
    crop_px: int

    @property
    def real(self) -> NDArray[np.uint8]:
        return self.slab.image[(..., *self._in_slab(self.box).slices())]

    @property
    def exists(self) -> tuple[bool, ...]:
        return self.slab.exists

    @property
    def inside(self) -> Box:
        return self.box.intersect(self.slab.inside)

    @property
    def name(self) -> str:
        return f"brain {self.slab.brain}, section {self.slab.first_section}, {self.box}"

    def _in_slab(self, box: Box) -> Box:
        return box.shift(-self.slab.window.y0, -self.slab.window.x0)

    def counts(self, box: Box) -> Float[Tensor, "gene section bin_y bin_x"]:
        """Binned counts of a box inside the slab's window."""
        inner = self._in_slab(box)
        layers = []
        for rows in self.slab.transcripts:
            gene = rows.gene if self.new_gene is None else self.new_gene[rows.gene]
            kept = (gene >= 0) & (rows.y >= inner.y0) & (rows.y < inner.y1) & (rows.x >= inner.x0) & (rows.x < inner.x1)
            moved = Transcripts(
                rows.y[kept] - np.int32(inner.y0), rows.x[kept] - np.int32(inner.x0), gene[kept], rows.count[kept]
            )
            layers.append(bin_transcripts(moved, (box.height, box.width), self.bin_px, self.genes))
        return torch.from_numpy(np.stack(layers, axis=1))


def validation_regions(trainer: lightning.Trainer, module: MethodModule, count: int) -> list[Region]:
    """The same `count` regions every time: of slabs spread evenly over the split, those with most transcripts.

    A region is the largest square of whole patches (at most 8) whose genes, with the sampler's halo, its slab holds.
    Raises `InputError` where nothing is validated (no such split, `limit_val_batches` 0) or its slabs are too small.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, PairsDataModule) or "val" not in data.manifest.splits:
        raise InputError(
            "pictures are made of validation tissue, and these shards have none: write them with --val, or remove the "
            f"callbacks that paint ({_PAINTING}) from the recipe"
        )
    if not trainer.limit_val_batches:
        raise InputError(
            "pictures are made of validation tissue, and limit_val_batches is 0, so nothing is validated: raise it, "
            f"or remove the callbacks that paint ({_PAINTING}) from the recipe"
        )
    manifest, side, halo = data.manifest, module.info.model.patch_px, module.info.model.halo_px
    total = len(manifest.split("val").samples)
    numbers = np.unique(np.linspace(0, total - 1, min(total, _LOOKED_AT * count)).round().astype(int)).tolist()
    slabs = {number: manifest.read("val", number) for number in numbers}
    richest = sorted(sorted(numbers, key=lambda number: (-int(slabs[number].count.sum()), number))[:count])
    regions = []
    for number in richest:
        slab = slabs[number]
        patches = min(8, (slab.window.height - 2 * halo) // side, (slab.window.width - 2 * halo) // side)
        if patches < 1:
            raise InputError(
                f"slabs of {slab.window.height} x {slab.window.width} px hold no patch of {side} px with {halo} px "
                "around it; write shards with a larger --core-px"
            )
        y, x = slab.window.y0 + halo, slab.window.x0 + halo
        regions.append(
            Region(
                slab=slab,
                number=number,
                box=Box(y, y + patches * side, x, x + patches * side),
                group=section_window(slab.first_section, data.inputs.gene_sections),
                new_gene=panel_map(manifest.genes, data.inputs.genes),
                genes=len(data.inputs.genes),
                bin_px=data.bin_px,
                crop_px=2 * data.patch_px,
            )
        )
    return regions


#: module -> (step, {(slab, DDIM steps): picture}): callbacks that ask for the same picture share it
_painted: WeakKeyDictionary[MethodModule, tuple[int, dict[tuple[int, int], NDArray[np.uint8]]]] = WeakKeyDictionary()


def paint(
    trainer: lightning.Trainer, module: MethodModule, regions: Sequence[Region], steps: int
) -> list[NDArray[np.uint8]]:
    """Pictures of the regions, uint8 (stain, section, y, x), on every process; each process paints its share.

    DDIM with `steps` steps (a method without steps: one pass) and noise keyed by (SEED, place): two pictures of a run
    differ by its weights alone.
    """
    known_step, known = _painted.get(module, (-1, {}))
    if known_step != trainer.global_step:
        known = {}
    mine = {
        region.number: _paint(trainer, module, region, steps)
        for region in regions[trainer.global_rank :: trainer.world_size]
        if (region.number, steps) not in known
    }
    known |= {(number, steps): picture for number, picture in gathered(trainer, mine).items()}
    _painted[module] = (trainer.global_step, known)
    return [known[region.number, steps] for region in regions]


def _paint(trainer: lightning.Trainer, module: MethodModule, region: Region, steps: int) -> NDArray[np.uint8]:
    model, network = module.info.model, module.network
    state = None
    with evaluating(module), trainer.precision_plugin.forward_context():
        if isinstance(network, BlockNetwork):
            settings = SamplerSettings(module.info.prediction, steps)
            noise = box_noise(SEED, region.group, model.stains)
            domain = Domain.whole(region.box, model.patch_px)
            for state in sample_steps(network, region.counts, noise, domain, settings):  # noqa: B007
                pass
        else:
            assert isinstance(network, Painter)
            state = paint_region(network, region.counts, keyed_planes(SEED, region.group), region.box)
    assert state is not None
    picture = to_uint8(state.float()).numpy()
    return np.asarray(picture.reshape(model.stains, model.sections, *picture.shape[1:]), np.uint8)


@contextmanager
def evaluating(module: MethodModule) -> Iterator[None]:
    """The network without dropout for a while."""
    was = module.network.training
    module.network.eval()
    try:
        yield
    finally:
        module.network.train(was)


def gathered(trainer: lightning.Trainer, mine: dict[int, Any]) -> dict[int, Any]:
    """What every process holds, joined, on all of them, in order of the keys."""
    if trainer.world_size == 1:
        return mine
    parts: list[dict[int, Any] | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, mine)
    joined = {key: value for part in parts if part is not None for key, value in part.items()}
    return dict(sorted(joined.items()))
