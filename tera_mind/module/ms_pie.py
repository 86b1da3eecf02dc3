"""The LightningModule of MS-PIE: wiring of settings and networks, and the size of the head drawn at every step."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from tera_mind.baselines.ms_pie import MS_PIE, MsPie, MsPieConfig, MsPieDiscriminator
from tera_mind.errors import InputError
from tera_mind.model.config import CountTransform
from tera_mind.model.inputs import Inputs
from tera_mind.module.base import Batch
from tera_mind.module.gan import GanModule

#: what the random numbers of sizes are for; smaller numbers are taken by `tera_mind.module.base` and `.gan`
_HEADS = 100


class MsPieModule(GanModule):
    """Trains MS-PIE on batches of `PairsDataModule`: at every step on a part of the crops, of a size drawn by chance.

    The size of the head and the place of the part in the crop are functions of (seed, step), the same for the whole
    batch and on all processes. Validation sees whole crops.

    Args:
        channels: widths of generator and discriminator, one a resolution, from a sample a bin to a sample a pixel.
        position_channels: channels of the positions at the head, a multiple of 4.
        style_channels: width of z and w.
        mapping_layers: layers of the mapping network.
        count_transform: `counts` or `log1p`.
        discriminator_genes: channels of a gene map that the discriminator sees beside the image; 0: none.
        head_bins: sides of the head in bins that training draws from, from a quarter of a crop's to a crop's.
        head_shares: how often each is drawn, in their order.
    """

    METHOD = MS_PIE

    def __init__(
        self,
        inputs: Inputs,
        channels: list[int] = [512, 512, 512, 512, 512, 256],  # noqa: B006 (never changed; prints well in YAML)
        position_channels: int = 512,
        style_channels: int = 512,
        mapping_layers: int = 8,
        count_transform: CountTransform = "log1p",
        discriminator_genes: int = 0,
        head_bins: list[int] = [4, 6, 8],  # noqa: B006
        head_shares: list[float] = [0.5, 0.25, 0.25],  # noqa: B006
        **training: Any,
    ) -> None:
        config = MsPieConfig(
            **inputs.sizes,
            channels=tuple(channels),
            position_channels=position_channels,
            style_channels=style_channels,
            mapping_layers=mapping_layers,
            count_transform=count_transform,
            discriminator_genes=discriminator_genes,
        )
        most = 2 * config.bins
        if not head_bins or not most / 4 <= min(head_bins) <= max(head_bins) <= most:  # the judge halves that often
            raise InputError(
                f"head_bins must be between {-(-most // 4)} and {most} bins, a quarter and the whole of a crop of "
                f"{2 * inputs.patch_px} px, got {head_bins}; take another patch_px or other bins"
            )
        if len(head_shares) != len(head_bins) or min(head_shares) < 0 or abs(sum(head_shares) - 1) > 1e-6:
            raise InputError(f"head_shares needs one share a size that add up to 1, got {head_shares}")
        super().__init__(inputs, config, MsPie(config), MsPieDiscriminator(config), **training)
        self.save_hyperparameters({"head_bins": head_bins, "head_shares": head_shares})
        self.head_bins, self.head_shares = head_bins, head_shares

    def head(self, step: int, bins: int) -> tuple[int, int, int]:
        """Side of the head at a step, and row and column of its first bin in a crop of `bins` bins a side."""
        random = np.random.default_rng([self.hparams["seed"], _HEADS, step])
        side = int(random.choice(self.head_bins, p=self.head_shares))
        row, column = random.integers(bins - side + 1, size=2)
        return side, int(row), int(column)

    def _pairs(
        self, batch: Batch, jitter: Float[Tensor, "n gene section bin_y bin_x"]
    ) -> tuple[Float[Tensor, "n channel y x"], Tensor, Tensor]:
        """Real images and their counts, in training a part of the crop."""
        real, counts, _ = super()._pairs(batch, jitter)
        if self.training:
            side, row, column = self.head(self.global_step, counts.shape[-1])
            px = self.generator.bin_px
            counts = counts[..., row : row + side, column : column + side]
            real = real[..., px * row : px * (row + side), px * column : px * (column + side)]
        return real, counts, counts
