"""IST-editing: StyleGAN2 that begins with a grid of gene sums (Wu, Berg and Koelzer 2024, bioRxiv 2023.12.23.573175).

The learned constant of StyleGAN2 gives way to the gene counts of bins of 32 px, its convolutions have no padding, and
133 px come out, of which 128 are kept; tiles advance 4 bins. Neighbouring tiles see the same bins and the same noise
where they overlap, and one style z for the whole brain, so a region in tiles is the region at once.

This project's own: several sections enter and leave as channels; the bins' counts are averaged to the bins' corners,
which is what centres 133 px on 4 whole bins (4 more on every side are needed: `halo_px`); the jitter of the counts is
U(0, 1) for each bin, where the released code draws one number of U(-1, 1) for a gene in all bins of an image, and at
generation its mean, one half; the discriminator, StyleGAN2's, may be shown the genes beside the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tera_mind.baselines.stylegan2.alignment import after_corners, layer_windows
from tera_mind.baselines.stylegan2.judge import GeneDiscriminator
from tera_mind.baselines.stylegan2.layers import EqualConv, activate
from tera_mind.baselines.stylegan2.networks import Mapping, Synthesis
from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.model.blocks import NoisePlane
from tera_mind.model.config import BlockConfig, CountTransform
from tera_mind.model.methods import Method, MethodNetwork, register

#: name in checkpoints and recipes
IST_EDITING = "ist-editing"
#: bins needed around a tile: a half for the corners, one for the first convolution, two and a half for all others
HALO_BINS = 4
#: mean of the jitter U(0, 1) that training adds to the counts
MEAN_JITTER = 0.5


@dataclass(frozen=True)
class IstEditingConfig(BlockConfig):
    """Sizes of the networks; the defaults are the published ones, but that images have two stains.

    A training image is two patches a side. Raises `InputError` where sizes do not fit together.
    """

    bin_px: int = 32
    #: one entry a resolution, coarsest (a sample a bin) first, finest (a sample a pixel) last
    channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256)
    style_channels: int = 512
    mapping_layers: int = 8
    #: how counts enter: as they are (published) or as log(1 + count)
    count_transform: CountTransform = "counts"
    #: channels of a gene map that the discriminator sees beside the image; 0: the image alone, as in StyleGAN2
    discriminator_genes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bin_px != 1 << (len(self.channels) - 1):
            raise InputError(
                f"channels needs one width a resolution from bins of {self.bin_px} px to pixels, "
                f"that is log2(bin_px) + 1, got {len(self.channels)}"
            )
        if min(*self.channels, self.style_channels) < 1 or min(self.mapping_layers, self.discriminator_genes) < 0:
            raise InputError("channels and style_channels must be at least 1, mapping_layers and discriminator_genes 0")

    @property
    def halo_px(self) -> int:
        """Four bins, whatever their size."""
        return HALO_BINS * self.bin_px

    @property
    def tile_exact(self) -> bool:
        return True


class IstEditing(MethodNetwork):
    """The generator: mapping network, gene entry and padding-free synthesis; a `Painter`."""

    config: IstEditingConfig
    #: whether training adds a jitter of U(0, 1) to the counts
    jittered = True

    def __init__(self, config: IstEditingConfig) -> None:
        super().__init__(config)
        channels = config.channels
        self.mapping = Mapping(config.style_channels, config.mapping_layers)
        self.enter = EqualConv(config.genes * config.gene_sections, channels[0], 1)
        self.synthesis = Synthesis(channels[0], channels, config.image_channels, config.style_channels)

    def noise_planes(self, bins: Box) -> list[NoisePlane]:
        """z, a row of numbers shared by the whole brain, then a plane for each styled convolution."""
        z = NoisePlane(Box(0, 1, 0, self.config.style_channels), shared=True)
        return [z, *(NoisePlane(box) for box in layer_windows(after_corners(bins), len(self.config.channels) - 1))]

    def styles(self, z: Float[Tensor, "n style"]) -> Float[Tensor, "n layer style"]:
        """One style w for all styled convolutions."""
        w: Tensor = self.mapping(z)
        return w[:, None].expand(-1, self.synthesis.layers, -1)

    def synthesise(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        w: Float[Tensor, "n layer style"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        """Images, not limited to [-1, 1], of windows without their halo; counts with jitter; noise without z."""
        x = activate(self.enter(_transformed(counts, self.config)))
        corners = F.avg_pool2d(x, 2, stride=1)
        image: Tensor = self.synthesis(corners, w, noise)
        height, width = ((bins - 2 * HALO_BINS) * self.bin_px for bins in counts.shape[-2:])
        return image[..., 2 : 2 + height, 2 : 2 + width]  # of 5 px too many, 2 are before and 3 behind

    def paint(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        z, *planes = (plane.to(self.synthesis.first.weight) for plane in noise)
        image = self.synthesise(counts.to(z) + MEAN_JITTER, self.styles(z[:, 0]), planes)
        return image.clamp(-1, 1).to(torch.promote_types(image.dtype, torch.float32))


class IstEditingDiscriminator(GeneDiscriminator):
    """StyleGAN2's discriminator of images of two patches a side, and of their genes where the shape says so."""

    def __init__(self, config: IstEditingConfig) -> None:
        super().__init__(
            config.image_channels,
            config.genes * config.gene_sections,
            config.discriminator_genes,
            config.channels[::-1],
            2 * config.patch_px,
            config.bin_px,
        )
        self.config = config

    def forward(
        self, image: Float[Tensor, "n channel y x"], counts: Float[Tensor, "n gene section bin_y bin_x"]
    ) -> Float[Tensor, " n"]:
        """Logits of images; counts: of the image's own bins, with jitter."""
        return super().forward(image, _transformed(counts, self.config))


def _transformed(
    counts: Float[Tensor, "n gene section bin_y bin_x"], config: IstEditingConfig
) -> Float[Tensor, "n gene_section bin_y bin_x"]:
    return (counts.log1p() if config.count_transform == "log1p" else counts).flatten(1, 2)


register(Method(IST_EDITING, IstEditingConfig, IstEditing))
