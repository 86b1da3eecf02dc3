"""What a brain costs: its work in voxel-steps over a measured rate."""

from __future__ import annotations

from dataclasses import dataclass

from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.geometry import Box, section_groups
from tera_mind.model.config import ModelConfig
from tera_mind.sampling.domain import Domain


@dataclass(frozen=True)
class Extent:
    """A brain to generate: patches a section group has down, and those of all groups that are computed."""

    rows: int
    groups: int
    active_patches: int
    patch_voxels: int

    @property
    def voxels(self) -> int:
        """Voxels that are computed: stain, section, y, x."""
        return self.active_patches * self.patch_voxels

    @staticmethod
    def of_brain(brain: Brain, config: ModelConfig) -> Extent:
        """The whole canvas of a brain store, only patches in and near tissue. `InputError` below one patch."""
        side = config.patch_px
        region = Box(0, brain.shape[2] // side * side, 0, brain.shape[3] // side * side)
        if region.is_empty:
            raise InputError(f"a canvas of {brain.canvas} is smaller than one patch of {side} px")
        groups = section_groups(brain.shape[1], config.gene_sections)
        domains = [Domain.of_tissue(brain, group.image, region, side) for group in groups]
        active = sum(int(domain.active.sum()) for domain in domains)
        return Extent(domains[0].rows, len(groups), active, config.image_channels * side**2)

    @staticmethod
    def of_size(height_px: int, width_px: int, sections: int, config: ModelConfig) -> Extent:
        """A canvas of which every patch is computed; edges that fill no patch are left out, as by `generate`."""
        rows, columns = height_px // config.patch_px, width_px // config.patch_px
        if min(rows, columns, sections) < 1:
            raise InputError(
                f"--size-px {height_px}x{width_px} with {sections} sections is less than one patch of "
                f"{config.patch_px} px in one section"
            )
        groups = len(section_groups(sections, config.gene_sections))
        return Extent(rows, groups, groups * rows * columns, config.image_channels * config.patch_px**2)


def redundancy(groups: int, rows: int, devices: int, steps: int) -> float:
    """Work with what bands compute twice, over the work without: 1 where every device takes whole groups.

    Whole groups are dealt out as far as they go round; the g left over are cut into bands of rows. At every inner
    border of bands step s of S is computed on S - s rows more to either side, S - 1 rows in the mean of both:
    1 + (g / groups) (bands - 1) (S - 1) / rows.
    """
    left = groups % devices
    if not left:
        return 1.0
    bands = min(-(-devices // left), rows)
    return 1.0 + left / groups * (bands - 1) * (steps - 1) / rows


@dataclass(frozen=True)
class Cost:
    """Hours on `devices` devices: in the network, and around it (reading genes, noise, writing) if nothing overlaps."""

    voxels: int
    steps: int
    devices: int
    redundancy: float
    network_hours: float
    io_hours: float

    @property
    def hours(self) -> float:
        return self.network_hours + self.io_hours


def cost(extent: Extent, steps: int, devices: int, voxel_steps_s: float, io_s_a_megavoxel: float) -> Cost:
    """Hours of a brain at a rate of one device: network = voxels x steps x redundancy / (rate x devices)."""
    again = redundancy(extent.groups, extent.rows, devices, steps)
    network_s = extent.voxels * steps * again / (voxel_steps_s * devices)
    io_s = extent.voxels / 1e6 * io_s_a_megavoxel / devices
    return Cost(extent.voxels, steps, devices, again, network_s / 3600, io_s / 3600)
