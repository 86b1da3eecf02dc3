"""InfinityGAN: an implicit structure synthesiser under a padding-free StyleGAN2 (Lin et al. 2022, arXiv:2104.03963).

A structure synthesiser G_S maps the local latents z_l around a place, under a global latent z_g, to structure z_S; a
texture synthesiser G_T, a StyleGAN2 without padding, paints it. Both are functions of what lies around a place alone,
so tiles are slices of one shared field of latents and noise, and a region in tiles is the region at once.

This project's own: the local latent is no noise but a 1 x 1 convolution of the gene bins, log(1 + count), of all
sections, averaged to the bins' corners (which centres the image on whole bins). Tissue has no canonical place, so
coordinates and the head that predicts them are dropped; in their stead the discriminator may be shown the genes. The
neighbourhood is unfolded once, at the entry of G_S, as in the paper's text (the released code does so at every layer,
which would need 16 bins of genes around an image instead of 7). One style for all layers, without style mixing; the
path length is StyleGAN2's, of the styles w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tera_mind.baselines.stylegan2.alignment import after_corners, layer_windows
from tera_mind.baselines.stylegan2.judge import GeneDiscriminator
from tera_mind.baselines.stylegan2.layers import EqualConv, EqualLinear, activate, modulated_convolution
from tera_mind.baselines.stylegan2.networks import Mapping, Synthesis
from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.model.blocks import NoisePlane
from tera_mind.model.config import BlockConfig
from tera_mind.model.methods import Method, MethodNetwork, register

#: name in checkpoints and recipes
INFINITY_GAN = "infinity-gan"
#: k: local latents this far around a place, in bins, are unfolded into one vector
UNFOLD_RADIUS = 3
#: bins needed around a tile: the unfolding, a half for the corners, three and a half for the texture synthesiser
HALO_BINS = UNFOLD_RADIUS + 4
#: keeps the diversity loss finite where latents or structures of two samples are the same
DIVERSITY_FLOOR = 1e-5


@dataclass(frozen=True)
class InfinityGanConfig(BlockConfig):
    """Sizes of the networks; the defaults are the published ones, but that images have 128 px, not 101.

    A training image is two patches a side. Raises `InputError` where sizes do not fit together.
    """

    #: widths of the texture synthesiser, coarsest resolution (a sample a bin) first, finest (a sample a pixel) last
    channels: tuple[int, ...] = (512, 512, 512, 512, 512)
    #: width of z_l and of all layers of the structure synthesiser, z_S included
    local_channels: int = 256
    structure_layers: int = 4
    #: width of z_g and w
    style_channels: int = 512
    mapping_layers: int = 8
    #: channels of a gene map that the discriminator sees beside the image; 0: the image alone
    discriminator_genes: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bin_px != 1 << (len(self.channels) - 1):
            raise InputError(
                f"channels needs one width a resolution from bins of {self.bin_px} px to pixels, "
                f"that is log2(bin_px) + 1, got {len(self.channels)}"
            )
        if min(*self.channels, self.local_channels, self.structure_layers, self.style_channels) < 1:
            raise InputError("channels, local_channels, structure_layers and style_channels must all be at least 1")
        if min(self.mapping_layers, self.discriminator_genes) < 0:
            raise InputError("mapping_layers and discriminator_genes must be at least 0")

    @property
    def halo_px(self) -> int:
        """Seven bins, whatever their size."""
        return HALO_BINS * self.bin_px

    @property
    def tile_exact(self) -> bool:
        return True


class StructureSynthesiser(nn.Module):
    """G_S: an implicit function of the unfolded local latents, each layer modulated by the global latent.

    A layer is fully connected and runs at every place alike, that is, a 1 x 1 convolution; the first, on latents
    unfolded with radius k, is one of side 2 k + 1 without padding.
    """

    def __init__(self, channels: int, style_channels: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            _ModulatedLayer(channels, style_channels, 1 if index else 2 * UNFOLD_RADIUS + 1) for index in range(layers)
        )

    def forward(self, z_l: Float[Tensor, "n c y x"], w: Float[Tensor, "n layer style"]) -> Float[Tensor, "n c y2 x2"]:
        """Structure z_S, `UNFOLD_RADIUS` samples less on every side; w: a style for each layer."""
        z_s = z_l
        for index, layer in enumerate(self.layers):
            z_s = layer(z_s, w[:, index])
        return z_s


class _ModulatedLayer(nn.Module):
    def __init__(self, channels: int, style_channels: int, side: int) -> None:
        super().__init__()
        self.style = EqualLinear(style_channels, channels, bias=1.0)
        self.weight = EqualConv(channels, channels, side, bias=True)

    def forward(self, x: Float[Tensor, "n c y x"], w: Float[Tensor, "n style"]) -> Float[Tensor, "n c y2 x2"]:
        weight = self.weight.weight * self.weight.scale
        assert self.weight.bias is not None
        x = modulated_convolution(x, weight, self.style(w))
        return activate(x + self.weight.bias.to(x.dtype)[:, None, None])


class InfinityGan(MethodNetwork):
    """The generator: mapping network, structure and texture synthesisers; a `Painter`."""

    config: InfinityGanConfig
    #: whether training adds a jitter of U(0, 1) to the counts
    jittered = False

    def __init__(self, config: InfinityGanConfig) -> None:
        super().__init__(config)
        local, style = config.local_channels, config.style_channels
        self.mapping = Mapping(style, config.mapping_layers)
        self.local = EqualConv(config.genes * config.gene_sections, local, 1)
        self.structure = StructureSynthesiser(local, style, config.structure_layers)
        self.texture = Synthesis(local, config.channels, config.image_channels, style)

    def noise_planes(self, bins: Box) -> list[NoisePlane]:
        """z_g, a row of numbers shared by the whole brain, then a plane for each layer of the texture synthesiser."""
        z_g = NoisePlane(Box(0, 1, 0, self.config.style_channels), shared=True)
        structure = after_corners(bins).grow(-UNFOLD_RADIUS)
        return [z_g, *(NoisePlane(box) for box in layer_windows(structure, len(self.config.channels) - 1))]

    def styles(self, z: Float[Tensor, "n style"]) -> Float[Tensor, "n layer style"]:
        """One style w for the layers of both synthesisers, the structure's first."""
        w: Tensor = self.mapping(z)
        return w[:, None].expand(-1, self.config.structure_layers + self.texture.layers, -1)

    def local_latents(self, counts: Float[Tensor, "n gene section bin_y bin_x"]) -> Float[Tensor, "n c y x"]:
        """z_l at the bins' corners."""
        z_l: Tensor = self.local(_transformed(counts))
        return F.avg_pool2d(z_l, 2, stride=1)

    def synthesise(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        w: Float[Tensor, "n layer style"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        """Images, not limited to [-1, 1], of windows without their halo; noise without z_g."""
        layers = self.config.structure_layers
        z_s = self.structure(self.local_latents(counts), w[:, :layers])
        image: Tensor = self.texture(z_s, w[:, layers:], noise)
        height, width = ((bins - 2 * HALO_BINS) * self.bin_px for bins in counts.shape[-2:])
        return image[..., 2 : 2 + height, 2 : 2 + width]  # of 5 px too many, 2 are before and 3 behind

    def paint(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        z, *planes = (plane.to(self.local.weight) for plane in noise)
        image = self.synthesise(counts.to(z), self.styles(z[:, 0]), planes)
        return image.clamp(-1, 1).to(torch.promote_types(image.dtype, torch.float32))


class InfinityGanDiscriminator(GeneDiscriminator):
    """StyleGAN2's discriminator of images of two patches a side, and of their genes where the shape says so."""

    def __init__(self, config: InfinityGanConfig) -> None:
        super().__init__(
            config.image_channels,
            config.genes * config.gene_sections,
            config.discriminator_genes,
            config.channels[::-1],
            2 * config.patch_px,
            config.bin_px,
        )

    def forward(
        self, image: Float[Tensor, "n channel y x"], counts: Float[Tensor, "n gene section bin_y bin_x"]
    ) -> Float[Tensor, " n"]:
        """Logits of images; counts: of the image's own bins."""
        return super().forward(image, _transformed(counts))


def diversity_loss(z_l: Float[Tensor, "n c y x"], z_s: Float[Tensor, "n c2 y2 x2"]) -> Float[Tensor, ""]:
    """Mean of |z_l1 - z_l2| / |z_S1 - z_S2| (mean absolute differences), of each sample and the one before it (ibidem).

    The structures must be of one global latent. The latents, learnt here, count as given: else they would be driven
    together. Equal structures give a large but finite number with finite gradients, equal latents 0.
    """
    far = (z_l - z_l.roll(1, 0)).detach().abs().flatten(1).mean(1)
    apart = (z_s - z_s.roll(1, 0)).abs().flatten(1).mean(1)
    return (far / (apart + DIVERSITY_FLOOR)).mean()


def _transformed(counts: Float[Tensor, "n gene section bin_y bin_x"]) -> Float[Tensor, "n gene_section bin_y bin_x"]:
    return counts.log1p().flatten(1, 2)


register(Method(INFINITY_GAN, InfinityGanConfig, InfinityGan))
