"""SST-editing: StyleGAN2 whose kernels are driven by a gene vector (Wu and Koelzer 2024, Bioinformatics 40(3) btae077).

From StyleGAN2's learned constant, every 3 x 3 kernel of a layer is multiplied, tap by tap, by the same nine factors,
which an MLP of 8 layers makes of the genes of the image, nine a layer; the style w of a random z modulates as usual.

This project's own: the paper's images show single cells, here an image is a patch of tissue and its genes are the sums
over the patch, a section for itself; sections are channels of the image; sums enter as log(1 + sum) and, many as they
are, without jitter; upsampling is bilinear and comes before the convolution, which differs from StyleGAN2's own at the
rim alone; the discriminator may be shown the sums beside the image. Of the two stages only the first, generation from
genes, is here: the second, an encoder that inverts real images to edit them, needs the real image at generation, which
a comparison of images made from genes cannot give.

An image does not know where in it a gene was counted, nor what lies beside it: patches are put side by side and have
seams. They are always cut on one grid, so any tiling of whole patches paints the same (broken) picture; `tile_exact` is
False since a region is never painted as a whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tera_mind.baselines.stylegan2.layers import EqualLinear, activate
from tera_mind.baselines.stylegan2.networks import Discriminator, Mapping
from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.model import collage
from tera_mind.model.blocks import NoisePlane
from tera_mind.model.config import BlockConfig, CountTransform
from tera_mind.model.methods import Method, MethodNetwork, register

#: name in checkpoints and recipes
SST_EDITING = "sst-editing"
#: factors of a layer, one a tap of its kernels
TAPS = 9


@dataclass(frozen=True)
class SstEditingConfig(BlockConfig):
    """Sizes of the networks; the defaults are the published ones, but that images have two stains.

    A training image is one patch. Raises `InputError` where sizes do not fit together.
    """

    patch_px: int = 128
    #: one entry a resolution, coarsest (the learned constant, 4 px as published) first, finest (pixels) last
    channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256)
    style_channels: int = 512
    mapping_layers: int = 8
    #: width and layers of the MLP from genes to factors
    drive_channels: int = 256
    drive_layers: int = 8
    #: how the sums enter: as they are or as log(1 + sum)
    count_transform: CountTransform = "log1p"
    #: channels of the gene vector that the discriminator sees beside the image; 0: the image alone, as in StyleGAN2
    discriminator_genes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels or self.patch_px % (1 << (len(self.channels) - 1)):
            raise InputError(
                f"channels of {len(self.channels)} resolutions double {len(self.channels) - 1} times, "
                f"which must divide patch_px {self.patch_px}"
            )
        if min(*self.channels, self.style_channels, self.drive_channels, self.drive_layers) < 1:
            raise InputError("channels, style_channels, drive_channels and drive_layers must be at least 1")
        if min(self.mapping_layers, self.discriminator_genes) < 0:
            raise InputError("mapping_layers and discriminator_genes must be at least 0")

    @property
    def constant_px(self) -> int:
        """Side of the learned constant."""
        return self.patch_px >> (len(self.channels) - 1)

    @property
    def halo_px(self) -> int:
        """Nothing around a patch is read."""
        return 0

    @property
    def tile_exact(self) -> bool:
        return False


def driven_convolution(
    x: Float[Tensor, "n c_in y x"],
    weight: Float[Tensor, "c_out c_in 3 3"],
    style: Float[Tensor, "n c_in"],
    drive: Float[Tensor, "n tap"],
    *,
    demodulate: bool = True,
    up: bool = False,
) -> Float[Tensor, "n c_out y2 x2"]:
    """Padded convolution whose kernels are scaled by input channel and by tap, w'_ijk = s_i d_k w_ijk, to unit norm.

    With `up` the input is doubled bilinearly first.
    """
    kernels = weight * style.float()[:, None, :, None, None] * drive.float().view(-1, 1, 1, 3, 3)
    if demodulate:
        kernels = kernels * torch.rsqrt(kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    if up:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    samples, _, height, width = x.shape  # every sample has kernels of its own: one group of channels a sample
    x = F.conv2d(x.reshape(1, -1, height, width), kernels.flatten(0, 1).to(x.dtype), padding=1, groups=samples)
    return x.view(samples, -1, height, width)


class DrivenConv(nn.Module):
    """Driven 3 x 3 convolution, noise of a learned strength, bias, leaky ReLU."""

    def __init__(self, c_in: int, c_out: int, style_channels: int, *, up: bool = False) -> None:
        super().__init__()
        self.style = EqualLinear(style_channels, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 3, 3))
        self.scale = 1 / math.sqrt(9 * c_in)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.up = up

    def forward(
        self,
        x: Float[Tensor, "n c_in y x"],
        w: Float[Tensor, "n style"],
        drive: Float[Tensor, "n tap"],
        noise: Float[Tensor, "n y2 x2"],
    ) -> Float[Tensor, "n c_out y2 x2"]:
        """noise: standard normal, on the grid of the output, the same for all channels."""
        x = driven_convolution(x, self.weight * self.scale, self.style(w), drive, up=self.up)
        return activate(x + (self.strength * noise[:, None]).to(x.dtype) + self.bias.to(x.dtype)[:, None, None])


class DrivenImage(nn.Module):
    """Driven 3 x 3 convolution to the image's channels, without demodulation."""

    def __init__(self, c_in: int, image_channels: int, style_channels: int) -> None:
        super().__init__()
        self.style = EqualLinear(style_channels, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(image_channels, c_in, 3, 3))
        self.scale = 1 / math.sqrt(9 * c_in)
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(
        self, x: Float[Tensor, "n c_in y x"], w: Float[Tensor, "n style"], drive: Float[Tensor, "n tap"]
    ) -> Float[Tensor, "n image_channel y x"]:
        image = driven_convolution(x, self.weight * self.scale, self.style(w), drive, demodulate=False)
        return image.to(self.bias) + self.bias[:, None, None]


class SstEditing(MethodNetwork):
    """The generator of the first stage; a `Painter` of patches that do not know of each other."""

    config: SstEditingConfig
    #: whether training adds a jitter of U(0, 1) to the counts
    jittered = False

    def __init__(self, config: SstEditingConfig) -> None:
        super().__init__(config)
        channels, style = config.channels, config.style_channels
        self.constant = nn.Parameter(torch.randn(channels[0], config.constant_px, config.constant_px))
        self.mapping = Mapping(style, config.mapping_layers)
        self.first = DrivenConv(channels[0], channels[0], style)
        self.images = nn.ModuleList(DrivenImage(width, config.image_channels, style) for width in channels)
        self.ups, self.convs = nn.ModuleList(), nn.ModuleList()
        for width, finer in itertools.pairwise(channels):
            self.ups.append(DrivenConv(width, finer, style, up=True))
            self.convs.append(DrivenConv(finer, finer, style))
        inner = [config.drive_channels] * (config.drive_layers - 1)
        widths = [config.genes * config.gene_sections, *inner, TAPS * (self.layers + 1)]
        self.drive = nn.ModuleList(EqualLinear(a, b, rate=0.01) for a, b in itertools.pairwise(widths))

    @property
    def layers(self) -> int:
        """Styled convolutions; each takes a plane of noise. An image layer shares the next one's style and factors."""
        return 1 + 2 * len(self.ups)

    def noise_planes(self, bins: Box) -> list[NoisePlane]:
        """z, a row of numbers shared by the whole brain, then a plane for each styled convolution, of whole patches."""
        planes = [NoisePlane(Box(0, 1, 0, self.config.style_channels), shared=True)]
        patches = [edge // self.config.bins for edge in (bins.y0, bins.y1, bins.x0, bins.x1)]
        for layer in range(self.layers):
            side = self.config.constant_px << (layer + 1) // 2  # the constant's, then two layers a doubling
            planes.append(NoisePlane(Box(*(side * edge for edge in patches))))
        return planes

    def styles(self, z: Float[Tensor, "n style"]) -> Float[Tensor, "n layer style"]:
        """One style w for all styled convolutions."""
        w: Tensor = self.mapping(z)
        return w[:, None].expand(-1, self.layers, -1)

    def factors(self, genes: Float[Tensor, "n gene_section"]) -> Float[Tensor, "n layer1 tap"]:
        """Nine factors for each styled convolution, and nine for the last image layer, of transformed sums."""
        for layer in self.drive:
            genes = activate(layer(genes))
        factors: Tensor = genes.unflatten(1, (-1, TAPS))
        return factors

    def synthesise(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        w: Float[Tensor, "n layer style"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        """Images, not limited to [-1, 1], of whole patches; noise without z."""
        rows, columns = (size // self.config.bins for size in counts.shape[-2:])
        sums = patch_sums(counts, self.config)
        planes = [collage.to_patches(plane[:, None], plane.shape[-2] // rows)[:, 0] for plane in noise]
        patches = self._patches(self.factors(sums), w.repeat_interleave(rows * columns, 0), planes)
        return collage.from_patches(patches, rows, columns)

    def _patches(
        self, drive: Float[Tensor, "n layer1 tap"], w: Float[Tensor, "n layer style"], noise: Sequence[Tensor]
    ) -> Float[Tensor, "n channel y x"]:
        last = self.layers - 1
        x = self.first(self.constant.expand(len(w), -1, -1, -1), w[:, 0], drive[:, 0], noise[0])
        image: Tensor = self.images[0](x, w[:, min(1, last)], drive[:, 1])
        for level, (up, conv) in enumerate(zip(self.ups, self.convs, strict=True)):
            i = 1 + 2 * level
            x = conv(up(x, w[:, i], drive[:, i], noise[i]), w[:, i + 1], drive[:, i + 1], noise[i + 1])
            image = F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False)
            image = image + self.images[level + 1](x, w[:, min(i + 2, last)], drive[:, i + 2])
        return image

    def paint(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        z, *planes = (plane.to(self.constant) for plane in noise)
        image = self.synthesise(counts.to(z), self.styles(z[:, 0]), planes)
        return image.clamp(-1, 1).to(torch.promote_types(image.dtype, torch.float32))


class SstEditingDiscriminator(nn.Module):
    """StyleGAN2's discriminator of patches, and of their gene sums where the shape says so."""

    def __init__(self, config: SstEditingConfig) -> None:
        super().__init__()
        self.config = config
        self.genes: EqualLinear | None = None
        if config.discriminator_genes:
            self.genes = EqualLinear(config.genes * config.gene_sections, config.discriminator_genes)
        channels = config.image_channels + config.discriminator_genes
        self.judge = Discriminator(channels, config.channels[::-1], config.patch_px)

    def forward(
        self, image: Float[Tensor, "n channel y x"], counts: Float[Tensor, "n gene section bin_y bin_x"]
    ) -> Float[Tensor, " n"]:
        """Logits of images of one patch; counts: of its bins."""
        if self.genes is not None:
            genes = self.genes(patch_sums(counts, self.config)).to(image)
            image = torch.cat([image, genes[:, :, None, None].expand(-1, -1, *image.shape[-2:])], 1)
        logits: Tensor = self.judge(image)
        return logits


def patch_sums(
    counts: Float[Tensor, "n gene section bin_y bin_x"], config: SstEditingConfig
) -> Float[Tensor, "patches gene_section"]:
    """Sums over each patch of all windows, row-major inside a window, transformed as the shape says."""
    sums = collage.counts_to_patches(counts, config.bins).sum((-2, -1)).flatten(1)
    return sums.log1p() if config.count_transform == "log1p" else sums


register(Method(SST_EDITING, SstEditingConfig, SstEditing))
