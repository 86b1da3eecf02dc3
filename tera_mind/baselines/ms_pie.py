"""MS-PIE: StyleGAN2 that begins with a grid of positions (Xu et al. 2021, CVPR, arXiv:2012.05217).

The learned constant of StyleGAN2 gives way to sinusoidal positions (SPE), so that the head may have any size: training
draws its size at every step. The convolutions behind bilinear upsampling are padded with zeros, and the discriminator
averages its last features to 2 x 2.

This project's own: gene counts of bins enter the head beside the positions, a position a bin, and the mean counts of
the image, through two layers, are added to the style w. Positions are counted from the middle of the image, since
tissue has no place of its own. The paper's scales show the same face larger; pixels of tissue have one size, so a
larger head is a larger field of view: smaller ones are cut from a crop, which is the largest. Upsampling comes before
the convolution, on the half-sample grid, where the released configuration has it behind and aligns corners. The
discriminator may be shown the genes beside the image.

Only whole images are meant: positions begin anew, zeros are padded and the mean counts change in every tile, so a
region in tiles is not the region at once (`tile_exact` is False) and has seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tera_mind.baselines.stylegan2.layers import EqualConv, EqualLinear, activate
from tera_mind.baselines.stylegan2.networks import Discriminator, Mapping, Synthesis
from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.model.blocks import NoisePlane
from tera_mind.model.config import BlockConfig, CountTransform
from tera_mind.model.methods import Method, MethodNetwork, register

#: name in checkpoints and recipes
MS_PIE = "ms-pie"
#: position of the middle of every image, so that images of all sizes share it; the published code's shift
CENTRE = 100
#: longest wavelength of the positions over 2 pi (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)
LONGEST = 10_000.0
#: side to which the discriminator averages its last features
POOLED = 2


@dataclass(frozen=True)
class MsPieConfig(BlockConfig):
    """Sizes of the networks; widths are the published ones. A training image is at most two patches a side.

    Raises `InputError` where sizes do not fit together.
    """

    patch_px: int = 128
    bin_px: int = 32
    #: one entry a resolution, coarsest (a sample a bin) first, finest (a sample a pixel) last
    channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256)
    #: channels of the positions, a multiple of 4: sines and cosines of x and y
    position_channels: int = 512
    style_channels: int = 512
    mapping_layers: int = 8
    #: how counts enter: as they are or as log(1 + count)
    count_transform: CountTransform = "log1p"
    #: channels of a gene map that the discriminator sees beside the image; 0: the image alone, as in StyleGAN2
    discriminator_genes: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bin_px != 1 << (len(self.channels) - 1):
            raise InputError(
                f"channels needs one width a resolution from bins of {self.bin_px} px to pixels, "
                f"that is log2(bin_px) + 1, got {len(self.channels)}"
            )
        if self.position_channels < 4 or self.position_channels % 4:
            raise InputError(f"position_channels must be a multiple of 4, got {self.position_channels}")
        if min(*self.channels, self.style_channels) < 1 or min(self.mapping_layers, self.discriminator_genes) < 0:
            raise InputError("channels and style_channels must be at least 1, mapping_layers and discriminator_genes 0")

    @property
    def halo_px(self) -> int:
        """Nothing around an image is read."""
        return 0

    @property
    def tile_exact(self) -> bool:
        return False


def sinusoidal_positions(height: int, width: int, channels: int) -> Float[Tensor, "channel y x"]:
    """SPE of a grid: sin(w_k x), cos(w_k x), sin(w_k y), cos(w_k y), each for w_k = LONGEST^(-k / K), K = channels / 4.

    x and y are whole numbers that are `CENTRE` at sample size // 2 of the grid.
    """
    count = channels // 4
    rates = LONGEST ** (-torch.arange(count, dtype=torch.float64) / count)
    axes = [(CENTRE - size // 2 + torch.arange(size)).outer(rates).T for size in (height, width)]
    y, x = (torch.cat([axis.sin(), axis.cos()]) for axis in axes)
    return torch.cat([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)]).float()


class MsPie(MethodNetwork):
    """The generator: positions and genes at the head, padded synthesis; a `Painter` whose tiles do not fit."""

    config: MsPieConfig
    #: whether training adds a jitter of U(0, 1) to the counts
    jittered = False

    def __init__(self, config: MsPieConfig) -> None:
        super().__init__(config)
        genes, width, style = config.genes * config.gene_sections, config.channels[0], config.style_channels
        self.mapping = Mapping(style, config.mapping_layers)
        self.gene_style = nn.ModuleList([EqualLinear(genes, style), EqualLinear(style, style)])
        self.enter = EqualConv(genes, width, 1)
        head = config.position_channels + width
        self.synthesis = Synthesis(head, config.channels, config.image_channels, style, padded=True)

    def noise_planes(self, bins: Box) -> list[NoisePlane]:
        """z, a row of numbers shared by the whole brain, then a plane for each styled convolution."""
        planes = [NoisePlane(Box(0, 1, 0, self.config.style_channels), shared=True)]
        for layer in range(self.synthesis.layers):
            scale = 1 << (layer + 1) // 2  # one layer at the head, two at every finer resolution
            planes.append(NoisePlane(Box(*(scale * edge for edge in (bins.y0, bins.y1, bins.x0, bins.x1)))))
        return planes

    def styles(self, z: Float[Tensor, "n style"]) -> Float[Tensor, "n layer style"]:
        """One style w for all styled convolutions; what the genes add to it is added in `synthesise`."""
        w: Tensor = self.mapping(z)
        return w[:, None].expand(-1, self.synthesis.layers, -1)

    def synthesise(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        w: Float[Tensor, "n layer style"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        """Images, not limited to [-1, 1], as large as the bins; noise without z."""
        genes = _transformed(counts, self.config)
        first, second = self.gene_style
        w = w + second(activate(first(genes.mean((2, 3)))))[:, None]
        grid = sinusoidal_positions(counts.shape[-2], counts.shape[-1], self.config.position_channels)
        head = torch.cat([activate(self.enter(genes)), grid.to(genes).expand(len(genes), -1, -1, -1)], 1)
        image: Tensor = self.synthesis(head, w, noise)
        return image

    def paint(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        z, *planes = (plane.to(self.synthesis.first.weight) for plane in noise)
        image = self.synthesise(counts.to(z), self.styles(z[:, 0]), planes)
        return image.clamp(-1, 1).to(torch.promote_types(image.dtype, torch.float32))


class MsPieDiscriminator(nn.Module):
    """StyleGAN2's discriminator of images of several sizes, and of their genes where the shape says so."""

    def __init__(self, config: MsPieConfig) -> None:
        super().__init__()
        self.config = config
        self.genes: EqualConv | None = None
        if config.discriminator_genes:
            self.genes = EqualConv(config.genes * config.gene_sections, config.discriminator_genes, 1)
        channels = config.image_channels + config.discriminator_genes
        self.judge = Discriminator(channels, config.channels[::-1], 2 * config.patch_px, pooled=POOLED)

    def forward(
        self, image: Float[Tensor, "n channel y x"], counts: Float[Tensor, "n gene section bin_y bin_x"]
    ) -> Float[Tensor, " n"]:
        """Logits of images; counts: of the image's own bins."""
        if self.genes is not None:
            genes = self.genes(_transformed(counts, self.config))
            image = torch.cat([image, F.interpolate(genes, scale_factor=float(self.config.bin_px)).to(image)], 1)
        logits: Tensor = self.judge(image)
        return logits


def _transformed(
    counts: Float[Tensor, "n gene section bin_y bin_x"], config: MsPieConfig
) -> Float[Tensor, "n gene_section bin_y bin_x"]:
    return (counts.log1p() if config.count_transform == "log1p" else counts).flatten(1, 2)


register(Method(MS_PIE, MsPieConfig, MsPie))
