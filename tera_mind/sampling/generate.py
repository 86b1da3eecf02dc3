"""From checkpoint and brain to a volume with the plain sampler, one section group at a time.

Finished groups wait in a folder beside the output until the volume is whole, so an interrupted run goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tera_mind.diffusion.schedule import respace
from tera_mind.errors import InputError, PanelMismatchError
from tera_mind.formats.atomic import atomic_file
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box, SectionGroup, section_groups
from tera_mind.model.blocks import BlockNetwork, Painter
from tera_mind.model.checkpoint import Checkpoint
from tera_mind.sampling.counts import count_source, panel_index
from tera_mind.sampling.oneshot import keyed_planes, paint_region
from tera_mind.sampling.plain import OnBlock, SamplerSettings, Stepper, blocks, keyed_noise, sample_steps, to_uint8

Precision = Literal["32", "bf16"]


@dataclass(frozen=True)
class Generation:
    """What to generate; everything that changes the result is here."""

    checkpoint: Checkpoint
    brain: Brain
    region: Box
    sections: tuple[int, ...]
    genes: str = "as measured"
    seed: int = 0
    steps: int = 15
    stepper: Stepper = "ddim"
    block: int = 8
    precision: Precision = "32"
    allow_missing_genes: bool = False

    def __post_init__(self) -> None:
        info, side = self.checkpoint.info, self.checkpoint.info.model.patch_px
        if self.region.height % side or self.region.width % side or self.region.is_empty:
            raise InputError(f"a region is a whole number of {side} px patches a side, got {self.region}")
        if abs(info.pixel_um / self.brain.pixel_um - 1) > 0.01:
            raise InputError(
                f"the checkpoint was trained at {info.pixel_um:g} um a pixel, the brain has {self.brain.pixel_um:g}: "
                f"ingest it again with --pixel-um {info.pixel_um:g}"
            )
        unknown = [z for z in self.sections if not 0 <= z < self.brain.shape[1]]
        if unknown or not self.sections:
            raise InputError(f"the brain has sections 0 to {self.brain.shape[1] - 1}, asked for {self.sections}")
        panel_index(self.brain.genes, info.genes, allow_missing=self.allow_missing_genes)
        if len(info.stains) != info.model.stains:
            raise PanelMismatchError(f"the checkpoint names {len(info.stains)} stains and makes {info.model.stains}")
        if self.genes == "shuffled" and info.model.bins % 2:
            raise InputError(
                f"genes are shuffled in half patches, which {info.model.bins} bins a patch cannot be cut into; "
                "use a model whose patch has an even number of bins"
            )
        respace(self.steps)  # a number of steps that does not exist is refused before any work

    @property
    def missing_genes(self) -> list[str]:
        """Genes of the checkpoint that the brain lacks and that are taken as zero."""
        have = set(self.brain.genes)
        return [gene for gene in self.checkpoint.info.genes if gene not in have]

    @property
    def groups(self) -> list[SectionGroup]:
        """Section groups that hold the sections asked for."""
        every = section_groups(self.brain.shape[1], self.checkpoint.info.model.gene_sections)
        return [group for group in every if set(group.image) & set(self.sections)]

    @property
    def block_count(self) -> int:
        """Passes through the network: blocks times steps times groups; of a method without steps: groups."""
        if not isinstance(self.checkpoint.network, BlockNetwork):
            return len(self.groups)
        side = self.checkpoint.info.model.patch_px
        per_step = len(list(blocks(self.region.height // side, self.region.width // side, self.block)))
        return per_step * self.steps * len(self.groups)

    @property
    def memory_bytes(self) -> int:
        """Main memory for the state of a group (four float32 copies) and the finished volume."""
        model = self.checkpoint.info.model
        pixels = self.region.height * self.region.width
        return pixels * (16 * model.image_channels + model.stains * len(self.sections))

    def fingerprint(self) -> str:
        """Hash of all that changes the result."""
        parts = (
            self.checkpoint.sha256, self.brain.fingerprint, str(self.region), self.sections, self.genes, self.seed,
            self.steps, self.stepper, self.block, self.precision, torch.__version__,
        )  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def default_region(brain: Brain, patch_px: int, wanted: Box | None = None) -> Box:
    """The wanted box (default: the canvas) cut to a whole number of patches from its upper left corner."""
    box = brain.canvas if wanted is None else wanted
    height, width = box.height // patch_px * patch_px, box.width // patch_px * patch_px
    if not height or not width:
        raise InputError(f"region {box} is smaller than one patch of {patch_px} px")
    return Box(box.y0, box.y0 + height, box.x0, box.x0 + width)


def _autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def generate_group(
    job: Generation, group: SectionGroup, device: torch.device, on_block: OnBlock = lambda: None
) -> NDArray[np.uint8]:
    """One section group: uint8 (stain, section, y, x), all Z sections, surplus ones included."""
    info = job.checkpoint.info
    index = panel_index(job.brain.genes, info.genes, allow_missing=job.allow_missing_genes)
    counts = count_source(
        job.brain,
        group.genes,
        index,
        job.region,
        patch_px=info.model.patch_px,
        bin_px=info.model.bin_px,
        treatment=job.genes,
        seed=job.seed,
        block=job.block,
    )
    network = job.checkpoint.network.to(device)
    state = None
    with _autocast(job.precision, device):
        if isinstance(network, BlockNetwork):
            settings = SamplerSettings(info.prediction, job.steps, job.stepper, job.block)
            noise = keyed_noise(job.seed, group, info.model.stains, job.region)
            for state in sample_steps(network, counts, noise, job.region, settings, on_block):  # noqa: B007
                pass
        else:
            assert isinstance(network, Painter)
            state = paint_region(network, counts, keyed_planes(job.seed, group), job.region, job.block)
            on_block()
    assert state is not None
    image: NDArray[np.uint8] = to_uint8(state).numpy()
    return image.reshape(info.model.stains, info.model.sections, *image.shape[1:])


def generate(job: Generation, out: Path, device: torch.device, on_block: OnBlock = lambda: None) -> Volume:
    """Generate the sections asked for into a volume; finished groups of an interrupted run are taken over."""
    parts = out.with_name(f".{out.name}.groups-{job.fingerprint()}")
    parts.mkdir(parents=True, exist_ok=True)
    planes: dict[int, NDArray[np.uint8]] = {}
    for group in job.groups:
        part = parts / f"{group.image[0]:04d}.npy"
        if part.is_file():
            image = np.load(part)
            for _ in range(job.block_count // len(job.groups)):
                on_block()
        else:
            image = generate_group(job, group, device, on_block)
            with atomic_file(part) as partial, partial.open("wb") as file:
                np.save(file, image)
        planes |= {z: image[:, i] for i, z in enumerate(group.image)}
    info = job.checkpoint.info
    attributes = VolumeAttributes(
        stains=info.stains,
        pixel_um=job.brain.pixel_um,
        brain=job.brain.path.name,
        brain_fingerprint=job.brain.fingerprint,
        box=job.region,
        sections=job.sections,
        patch_px=info.model.patch_px,
        checkpoint=job.checkpoint.sha256,
        seed=job.seed,
        steps=job.steps,
        genes=job.genes,
        section_um=_spacing(job.brain),
        settings={
            "stepper": job.stepper,
            "prediction": info.prediction,
            "precision": job.precision,
            "method": info.method,
            "block": job.block,
            "genes_missing": job.missing_genes,
            "torch": torch.__version__,
            "device": device.type,
            "model": info.model.to_dict(),
        },
    )
    volume = Volume.write(out, np.stack([planes[z] for z in job.sections], axis=1), attributes)
    shutil.rmtree(parts, ignore_errors=True)
    return volume


def _spacing(brain: Brain) -> float:
    """Mean distance of neighbouring sections, for viewers; 10 um for a single one."""
    z_um = [section.z_um for section in brain.sections]
    return abs(z_um[-1] - z_um[0]) / (len(z_um) - 1) if len(z_um) > 1 and z_um[-1] != z_um[0] else 10.0
