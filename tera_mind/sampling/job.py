"""What is to be generated, with everything that changes the result, and the parts that samplers make it from."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tera_mind import __version__
from tera_mind.diffusion.steppers import StepperName
from tera_mind.errors import InputError, PanelMismatchError
from tera_mind.formats.brain import Brain
from tera_mind.formats.ome import PIXEL_TYPES, PixelType
from tera_mind.formats.volume import VolumeAttributes
from tera_mind.geometry import Box, SectionGroup, section_groups
from tera_mind.model.blocks import BlockNetwork, Painter
from tera_mind.model.checkpoint import Checkpoint, load_checkpoint
from tera_mind.model.fast import PATCHES_AT_ONCE, Precision, check_compilable, fast_network
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.sampling import oneshot, wavefront
from tera_mind.sampling.counts import CountEdit, count_source, panel_index
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import BoxNoise, CountSource, OnBlock, SamplerSettings, box_noise
from tera_mind.sampling.precision import NarrowBlocks, NarrowPainter

#: patches by which the tissue is grown before everything outside it is left out
MASK_MARGIN = 2
#: blocks a pass on a GPU, unless asked otherwise
CUDA_MICRO_BATCH = 4


@dataclass(frozen=True)
class Generation:
    """What to generate; everything that changes the result is here.

    region: whole patches, in the brain's pixels; sections: the brain's numbers; genes: one of `GENE_TREATMENTS`; seed,
    steps, stepper, eta: of the sampler; block_rows, block_columns: patches along a block; micro_batch: blocks in one
    pass through the network; masked: only tissue, grown by `MASK_MARGIN` patches, is computed; dtype: of the volume;
    edit: what is done to the counts; patches_at_once, compile: of `fast_network`.
    Raises `InputError` or `PanelMismatchError` where these do not fit together. Pickling keeps the checkpoint's path.
    """

    checkpoint: Checkpoint
    brain: Brain
    region: Box
    sections: tuple[int, ...]
    genes: str = "as measured"
    seed: int = 0
    steps: int = 15
    stepper: StepperName = "ddim"
    eta: float = 0.0
    block_rows: int = 8
    block_columns: int = 8
    micro_batch: int = 1
    masked: bool = True
    precision: Precision = "32"
    dtype: PixelType = "uint8"
    allow_missing_genes: bool = False
    patches_at_once: int | None = None
    compile: bool = False
    edit: CountEdit | None = None

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
        _ = self.panel  # refuses genes that do not fit
        if len(info.stains) != info.model.stains:
            raise PanelMismatchError(f"the checkpoint names {len(info.stains)} stains and makes {info.model.stains}")
        if self.genes == "shuffled" and info.model.bins % 2:
            raise InputError(
                f"genes are shuffled in half patches, which {info.model.bins} bins a patch cannot be cut into; "
                "use a model whose patch has an even number of bins"
            )
        if self.dtype not in PIXEL_TYPES:
            raise InputError(f"a volume holds {' or '.join(PIXEL_TYPES)}, got {self.dtype!r}")
        if (
            min(
                self.block_rows,
                self.block_columns,
                self.micro_batch,
                1 if self.patches_at_once is None else self.patches_at_once,
            )
            < 1
            or self.seed < 0
        ):
            raise InputError(
                "--block, --micro-batch and --patches-at-once must be at least 1 and --seed 0 or more, got "
                f"{self.block_rows} x {self.block_columns}, {self.micro_batch}, {self.patches_at_once} and {self.seed}"
            )
        _ = self.settings.solver  # steps and steppers that do not exist are refused before any work

    def __reduce__(self) -> tuple[Any, ...]:
        """The checkpoint by its path: weights are read again, not sent to every worker."""
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "checkpoint"}
        return reopened, (self.checkpoint.path, self.checkpoint.sha256, rest)

    @cached_property
    def panel(self) -> NDArray[np.int64]:
        """Position of each of the checkpoint's genes in the brain, -1 where it is missing: int64 (gene,)."""
        return panel_index(self.brain.genes, self.checkpoint.info.genes, allow_missing=self.allow_missing_genes)

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
    def settings(self) -> SamplerSettings:
        """How the region is sampled."""
        steps, stepper, eta = (self.steps, self.stepper, self.eta) if self.has_steps else (1, "ddim", 0.0)
        return SamplerSettings(
            self.checkpoint.info.prediction, steps, stepper, eta, self.block_rows, self.block_columns, self.micro_batch
        )

    @property
    def has_steps(self) -> bool:
        """Whether the method denoises in steps; others paint in one pass, and steps, stepper and eta say nothing."""
        return isinstance(self.checkpoint.network, BlockNetwork)

    def network(self, device: torch.device) -> BlockNetwork | Painter:
        """The network for generation, on a device, in the job's precision."""
        network = self.checkpoint.network
        if isinstance(network, GeneMorphUNet):
            return fast_network(
                network, device, self.precision, compile=self.compile, patches_at_once=self.patches_at_once
            )
        network.to(device)
        if isinstance(network, BlockNetwork):
            return NarrowBlocks(network, device) if self.precision == "bf16" else network
        assert isinstance(network, Painter)
        return NarrowPainter(network, device) if self.precision == "bf16" else network

    def check_device(self, device: torch.device) -> None:
        """Raise `InputError` for a device on which the job cannot be done, before anything is written."""
        if not self.compile:
            return
        if not isinstance(self.checkpoint.network, GeneMorphUNet):
            raise InputError(f"{self.checkpoint.info.method} is not compiled for generation: leave --compile off")
        check_compilable(device)

    def pieces(
        self,
        network: BlockNetwork | Painter,
        group: SectionGroup,
        rows: tuple[int, int],
        device: torch.device,
        on_block: OnBlock = lambda: None,
        columns: tuple[int, int] | None = None,
    ) -> Iterator[tuple[Box, Float[Tensor, "channel y x"]]]:
        """Patch rows, and columns (default: all), of a group, piece by piece from left to right.

        Yields boxes in the brain's pixels and images in [-1, 1].
        """
        counts, domain = self.counts(group), self.domain(group)
        if isinstance(network, BlockNetwork):
            noise = self.noise(group)
            return wavefront.sweep(network, counts, noise, domain, self.settings, rows, columns, device, on_block)
        planes = oneshot.keyed_planes(self.seed, group)
        return oneshot.sweep(network, counts, planes, domain, self.settings, rows, on_block, columns)

    def wanted_micro_batch(self, device: torch.device) -> int:
        """Blocks at once that suit the device, before it is known whether they fit."""
        return 1 if device.type == "cpu" else CUDA_MICRO_BATCH

    def counts(self, group: SectionGroup) -> CountSource:
        """Gene counts of a group, treated as the job says."""
        model = self.checkpoint.info.model
        source = count_source(
            self.brain,
            group.genes,
            self.panel,
            self.region,
            patch_px=model.patch_px,
            bin_px=model.bin_px,
            treatment=self.genes,
            seed=self.seed,
        )
        return source if self.edit is None else self.edit.edited(source, group.genes, self.region)

    def noise(self, group: SectionGroup) -> BoxNoise:
        """Noise of a group, a function of seed, step and place alone."""
        return box_noise(self.seed, group, self.checkpoint.info.model.stains)

    def domain(self, group: SectionGroup) -> Domain:
        """Patches of the region that are computed for a group."""
        side = self.checkpoint.info.model.patch_px
        if not self.masked:
            return Domain.whole(self.region, side)
        sections = tuple(z for z in group.image if 0 <= z < self.brain.shape[1])
        return Domain.of_tissue(self.brain, sections, self.region, side, MASK_MARGIN)

    def facts(self, device: torch.device) -> dict[str, Any]:
        """Everything that the pixels depend on to the last bit, plain JSON, by the words a user knows it by."""
        facts = {
            "checkpoint": self.checkpoint.sha256,
            "brain": self.brain.fingerprint,
            "region": str(self.region),
            "sections": list(self.sections),
            "genes": self.genes,
            "genes_missing": self.missing_genes,
            "seed": self.seed,
            "method": self.checkpoint.info.method,
            "steps": self.settings.steps,
            "stepper": self.stepper if self.has_steps else "none",
            "eta": self.settings.eta,
            "block": [self.block_rows, self.block_columns],
            "micro_batch": self.micro_batch,
            "patches_at_once": self.patches_at_once or PATCHES_AT_ONCE[device.type],
            "compile": self.compile,
            "mask": "tissue" if self.masked else "none",
            "precision": self.precision,
            "dtype": self.dtype,
            "device": device_model(device),
            "torch": torch.__version__,
            "tera_mind": __version__,
        }
        return facts if self.edit is None else facts | {"intervention": self.edit.digest}

    def attributes(self, device: torch.device) -> VolumeAttributes:
        """What the volume will say of itself."""
        info, brain = self.checkpoint.info, self.brain
        settings = {
            key: value
            for key, value in self.facts(device).items()
            if key not in {"checkpoint", "brain", "region", "sections", "genes", "seed", "steps", "dtype", "tera_mind"}
        }
        if self.edit is not None:
            settings["intervention"] = {**self.edit.facts(), "digest": self.edit.digest}
        return VolumeAttributes(
            stains=info.stains,
            pixel_um=brain.pixel_um,
            brain=brain.path.name,
            brain_fingerprint=brain.fingerprint,
            box=self.region,
            sections=self.sections,
            patch_px=info.model.patch_px,
            checkpoint=self.checkpoint.sha256,
            seed=self.seed,
            steps=self.settings.steps,
            genes=self.genes,
            section_um=_spacing_um(brain),
            dtype=self.dtype,
            settings=settings | {"prediction": info.prediction, "model": info.model.to_dict()},
        )


def fingerprint(facts: dict[str, Any]) -> str:
    """16 hex digits of a job's facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def device_model(device: torch.device) -> str:
    """Name of the processor that does the arithmetic: bits are the same only on the same one."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{device.type} {platform.machine()}"


def block_of(region: Box, patch_px: int, most: int = 8) -> tuple[int, int]:
    """Patches down and across of blocks of at most `most` a side that leave little over at the region's edges."""
    down, across = (size // patch_px for size in (region.height, region.width))
    return tuple(-(-size // -(-size // most)) for size in (down, across))  # type: ignore[return-value]


def default_region(brain: Brain, patch_px: int, wanted: Box | None = None) -> Box:
    """The wanted box (default: the canvas) cut to a whole number of patches from its upper left corner."""
    box = brain.canvas if wanted is None else wanted
    height, width = box.height // patch_px * patch_px, box.width // patch_px * patch_px
    if not height or not width:
        raise InputError(f"region {box} is smaller than one patch of {patch_px} px")
    return Box(box.y0, box.y0 + height, box.x0, box.x0 + width)


def reopened(path: Path, sha256: str, rest: dict[str, Any]) -> Generation:
    """A job in another process, its checkpoint read again; `InputError` where that is no longer the same."""
    checkpoint = load_checkpoint(path)
    if checkpoint.sha256 != sha256:
        raise InputError(f"{path} was changed while a volume is generated from it; give the former file again")
    return Generation(checkpoint, **rest)


def _spacing_um(brain: Brain) -> float:
    """Mean distance of neighbouring sections, for viewers; 10 um for a single one."""
    z_um = [section.z_um for section in brain.sections]
    return abs(z_um[-1] - z_um[0]) / (len(z_um) - 1) if len(z_um) > 1 and z_um[-1] != z_um[0] else 10.0
