"""Gene features of the baselines: the pyramid of Tera-MIND without its gene-gene attention."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tera_mind.errors import InputError
from tera_mind.model.config import MAX_DENSE_GENES, BlockConfig, CountTransform
from tera_mind.model.genes import Counts, upsample
from tera_mind.model.layers import SectionConv


def check_pyramid(config: BlockConfig, pyramid_channels: Sequence[int]) -> None:
    """Raise `InputError` where bins do not fit the pyramid's resolutions or the panel is too large for it."""
    coarsest = 2 ** len(pyramid_channels)
    if config.bin_px % coarsest:
        raise InputError(
            f"a gene pyramid of {len(pyramid_channels)} widths starts at {coarsest} px: "
            f"bin_px must be a multiple of that, got {config.bin_px}"
        )
    if config.genes > MAX_DENSE_GENES:
        raise InputError(
            f"the gene pyramid of this baseline takes at most {MAX_DENSE_GENES} genes, got {config.genes}: "
            "choose a smaller panel with data.genes"
        )


class CountPyramid(nn.Module):
    """Counts in bins -> features from the coarsest resolution to single pixels (G -> 128 -> 64 -> 32 as published).

    Level 0: convolution G -> G over (z, y, x) that leaves the image sections, nearest upsampling to 2^L px, L the
    number of widths; then L times SiLU, convolution (1, 3, 3), nearest x2. Convolutions pad with zeros.
    """

    def __init__(self, config: BlockConfig, pyramid_channels: Sequence[int], count_transform: CountTransform) -> None:
        super().__init__()
        self.count_transform = count_transform
        self.first_factor = config.bin_px // 2 ** len(pyramid_channels)
        kernel_z = config.gene_sections // 2 + 1 if config.gene_sections > 1 else 1
        self.first = SectionConv(config.genes, config.genes, kernel_z, 3, pad_z=False)
        widths = (config.genes, *pyramid_channels)
        self.levels = nn.ModuleList(SectionConv(a, b, 1, 3) for a, b in itertools.pairwise(widths))

    def forward(self, counts: Counts) -> list[Float[Tensor, "b c z y x"]]:
        """Features, coarsest first; the last has a position a pixel."""
        counts = counts.to(self.first.weight)
        if self.count_transform == "log1p":
            counts = counts.log1p()
        levels = [upsample(self.first(counts), self.first_factor)]
        for conv in self.levels:
            levels.append(upsample(conv(F.silu(levels[-1])), 2))
        return levels
