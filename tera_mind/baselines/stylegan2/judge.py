"""StyleGAN2's discriminator of images and, where asked, of their genes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tera_mind.baselines.stylegan2.layers import EqualConv
from tera_mind.baselines.stylegan2.networks import Discriminator


class GeneDiscriminator(nn.Module):
    """A 1 x 1 convolution of the gene bins, repeated over their pixels, is concatenated to the image."""

    def __init__(
        self,
        image_channels: int,
        gene_channels: int,
        seen: int,
        channels: Sequence[int],
        image_px: int,
        bin_px: int,
    ) -> None:
        """gene_channels: genes times sections; seen: channels of the gene map, 0 for the image alone.

        channels: one width a resolution, finest first.
        """
        super().__init__()
        self.bin_px = bin_px
        self.genes = EqualConv(gene_channels, seen, 1) if seen else None
        self.judge = Discriminator(image_channels + seen, channels, image_px)

    def forward(
        self, image: Float[Tensor, "n channel y x"], genes: Float[Tensor, "n gene_section bin_y bin_x"]
    ) -> Float[Tensor, " n"]:
        """Logits of images; genes: of the image's own bins."""
        if self.genes is not None:
            seen = F.interpolate(self.genes(genes), scale_factor=float(self.bin_px))
            image = torch.cat([image, seen.to(image)], 1)
        logits: Tensor = self.judge(image)
        return logits
