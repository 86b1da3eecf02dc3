"""COCO-GAN: micro patches painted by coordinate, judged as macro patches (Lin et al. 2019, arXiv:1904.00284).

The generator G paints a micro patch from a latent z and its coordinate c''; 2 x 2 of them, side by side, are a macro
patch, which a discriminator with projection judges for its coordinate c', and whose coordinate a head A must tell.
A whole image is micro patches side by side, all of one z.

This project's own: tissue has no canonical coordinate. So c'' is the place of the micro patch inside its macro patch,
(-1 or 1, -1 or 1), and the genes of the macro patch: y = tanh of the mean log(1 + count) of each gene over bins and
sections; and c' is y, which the discriminator projects and the head tells. Conditional batch norm of (z, c'') is
joined by a modulation by place from the gene bins of the micro patch (SPADE, Park et al. 2019, arXiv:1903.07291), all
genes and sections of a bin brought to one map for all layers first; the last norm of G is modulated as well. Norms
keep statistics that are not finite out of their moving averages. z is normal, not uniform; A has no batch norm; the
gradient penalty is of the score with its projection. The head that guesses z, for editing, is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tera_mind.baselines.conditional_norm import ConditionalNorm
from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.model import collage
from tera_mind.model.blocks import NoisePlane
from tera_mind.model.config import BlockConfig
from tera_mind.model.methods import Method, MethodNetwork, register

#: name in checkpoints and recipes
COCO_GAN = "coco-gan"
#: micro patches along a macro patch
GRID = 2
#: side of the features that the first layer makes of z and c''
_START_PX = 2


@dataclass(frozen=True)
class CocoGanConfig(BlockConfig):
    """Sizes of the networks; the defaults are the published ones. `patch_px` is the side of a macro patch.

    Raises `InputError` where sizes do not fit together.
    """

    #: width of z
    latent_channels: int = 128
    #: generator: widths of the first features and of each residual block, which doubles the resolution
    channels: tuple[int, ...] = (1024, 512, 256, 128, 64)
    #: discriminator: widths of the residual blocks; all but the last halve the resolution
    discriminator_channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    #: width of the gene map that modulates, and of the hidden layer of each modulation
    spade_channels: int = 128
    #: hidden width of the coordinate head
    head_channels: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_px != GRID * self.micro_px or self.micro_px != _START_PX << (len(self.channels) - 1):
            raise InputError(
                f"micro patches are half a patch of {self.patch_px} px, and {len(self.channels)} channels of the "
                f"generator give {_START_PX << (len(self.channels) - 1)} px: channels needs log2(micro patch) widths"
            )
        if self.micro_px % self.bin_px:
            raise InputError(f"micro patches of {self.micro_px} px must be whole bins of {self.bin_px} px")
        if min(*self.channels, *self.discriminator_channels, self.latent_channels) < 1 or not (
            self.spade_channels > 0 and self.head_channels > 0
        ):
            raise InputError("all channels of coco-gan must be at least 1")
        if self.patch_px % (1 << (len(self.discriminator_channels) - 1)):
            raise InputError(
                f"a macro patch of {self.patch_px} px cannot be halved {len(self.discriminator_channels) - 1} times: "
                "take fewer discriminator_channels"
            )

    @property
    def micro_px(self) -> int:
        """Side of a micro patch."""
        return self.patch_px // GRID

    @property
    def halo_px(self) -> int:
        """A macro patch knows nothing of its neighbours."""
        return 0

    @property
    def tile_exact(self) -> bool:
        """No: whole macro patches come out the same in any tiling, but their borders need not fit."""
        return False


class _UpBlock(nn.Module):
    """Residual block of G: norm, ReLU, nearest x2, convolution, norm, ReLU, convolution; convolution 1 x 1 beside."""

    def __init__(self, c_in: int, c_out: int, condition: int, map_channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalNorm(width, condition, map_channels) for width in (c_in, c_out))
        self.convs = nn.ModuleList(spectral_norm(nn.Conv2d(width, c_out, 3, padding=1)) for width in (c_in, c_out))
        self.skip = spectral_norm(nn.Conv2d(c_in, c_out, 1))

    def forward(
        self,
        x: Float[Tensor, "n c_in y x"],
        condition: Float[Tensor, "n condition"],
        genes: Float[Tensor, "n gene bin_y bin_x"],
    ) -> Float[Tensor, "n c_out y2 x2"]:
        h = F.interpolate(F.relu(self.norms[0](x, condition, genes)), scale_factor=2.0)
        h = F.relu(self.norms[1](self.convs[0](h), condition, genes))
        out: Tensor = self.convs[1](h) + self.skip(F.interpolate(x, scale_factor=2.0))
        return out


class CocoGan(MethodNetwork):
    """The generator G of micro patches; a `Painter` of macro patches side by side."""

    config: CocoGanConfig
    #: whether training adds a jitter of U(0, 1) to the counts
    jittered = False

    def __init__(self, config: CocoGanConfig) -> None:
        super().__init__(config)
        condition, genes = config.latent_channels + 2 + config.genes, config.genes * config.gene_sections
        widths = config.channels
        self.enter = spectral_norm(nn.Linear(condition, widths[0] * _START_PX**2))
        self.genes = nn.Conv2d(genes, config.spade_channels, 1)
        self.blocks = nn.ModuleList(
            _UpBlock(width, finer, condition, config.spade_channels) for width, finer in itertools.pairwise(widths)
        )
        self.norm = ConditionalNorm(widths[-1], condition, config.spade_channels)
        self.leave = spectral_norm(nn.Conv2d(widths[-1], config.image_channels, 3, padding=1))

    def noise_planes(self, bins: Box) -> list[NoisePlane]:
        """z, a row of numbers shared by the whole brain."""
        del bins
        return [NoisePlane(Box(0, 1, 0, self.config.latent_channels), shared=True)]

    def styles(self, z: Float[Tensor, "n style"]) -> Float[Tensor, "n 1 style"]:
        """Z itself: there is no mapping network."""
        return z[:, None]

    def micro(
        self,
        z: Float[Tensor, "n latent"],
        coordinate: Float[Tensor, "n coordinate"],
        genes: Float[Tensor, "n gene bin_y bin_x"],
    ) -> Float[Tensor, "n channel y x"]:
        """Micro patches in [-1, 1]; coordinate: c''; genes: log(1 + count) of their own bins."""
        condition, genes = torch.cat([z, coordinate], 1), self.genes(genes)
        x = self.enter(condition).unflatten(1, (self.config.channels[0], _START_PX, _START_PX))
        for block in self.blocks:
            x = block(x, condition, genes)
        image: Tensor = torch.tanh(self.leave(F.relu(self.norm(x, condition, genes))))
        return image

    def synthesise(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        w: Float[Tensor, "n layer style"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        """Images of whole macro patches, each by itself; w: z, of one layer; no other noise."""
        del noise
        rows, columns = (bins // self.config.bins for bins in counts.shape[-2:])
        macro = collage.counts_to_patches(counts, self.config.bins)
        z = w[:, 0].repeat_interleave(rows * columns, 0)
        coordinate = torch.cat([_corners(macro), pooled(macro).repeat_interleave(GRID**2, 0)], 1)
        genes = collage.to_patches(macro.log1p().flatten(1, 2), self.config.bins // GRID)
        micro = self.micro(z.repeat_interleave(GRID**2, 0), coordinate, genes)
        return collage.from_patches(collage.from_patches(micro, GRID, GRID), rows, columns)

    def paint(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        weight = self.norm.running_mean
        image = self.synthesise(counts.to(weight), self.styles(noise[0].to(weight)[:, 0]), [])
        return image.to(torch.promote_types(image.dtype, torch.float32))


class Judgement(NamedTuple):
    """What the discriminator says of macro patches: a score each, unlimited, and the coordinate that the head tells."""

    score: Float[Tensor, " n"]
    coordinate: Float[Tensor, "n gene"]


class CocoGanDiscriminator(nn.Module):
    """Residual discriminator with projection (Miyato & Koyama 2018, arXiv:1802.05637) and the coordinate head A."""

    def __init__(self, config: CocoGanConfig) -> None:
        super().__init__()
        widths = (config.image_channels, *config.discriminator_channels)
        last = len(widths) - 2
        self.blocks = nn.ModuleList(
            _DownBlock(width, coarser, first=index == 0, halve=index < last)
            for index, (width, coarser) in enumerate(itertools.pairwise(widths))
        )
        self.score = spectral_norm(nn.Linear(widths[-1], 1))
        self.embed = spectral_norm(nn.Linear(config.genes, widths[-1]))
        self.head = nn.Sequential(
            spectral_norm(nn.Linear(widths[-1], config.head_channels)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(config.head_channels, config.genes)),
            nn.Tanh(),
        )

    def forward(
        self, image: Float[Tensor, "n channel y x"], counts: Float[Tensor, "n gene section bin_y bin_x"]
    ) -> Judgement:
        """Of macro patches; counts: of their own bins."""
        x = image
        for block in self.blocks:
            x = block(x)
        features = F.relu(x).sum((2, 3))
        return Judgement(projected(features, pooled(counts), self.score, self.embed), self.head(features))


class _DownBlock(nn.Module):
    """Residual block of D: ReLU (not in the first), convolution, ReLU, convolution, mean of 2 x 2 where it halves."""

    def __init__(self, c_in: int, c_out: int, *, first: bool, halve: bool) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.convs = nn.ModuleList(spectral_norm(nn.Conv2d(width, c_out, 3, padding=1)) for width in (c_in, c_out))
        self.skip = spectral_norm(nn.Conv2d(c_in, c_out, 1))

    def forward(self, x: Float[Tensor, "n c_in y x"]) -> Float[Tensor, "n c_out y2 x2"]:
        h = self.convs[1](F.relu(self.convs[0](x if self.first else F.relu(x))))
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        out: Tensor = h + self.skip(x)
        return out


def projected(
    features: Float[Tensor, "n c"], y: Float[Tensor, "n gene"], score: nn.Module, embed: nn.Module
) -> Float[Tensor, " n"]:
    """psi(phi(x)) + (V y) . phi(x): how real the features are, and how well they go with y (equation 3, ibidem)."""
    total: Tensor = score(features)[:, 0] + (embed(y) * features).sum(1)
    return total


def pooled(counts: Float[Tensor, "n gene section bin_y bin_x"]) -> Float[Tensor, "n gene"]:
    """y, a number in [0, 1) for each gene: tanh of the mean log(1 + count)."""
    return counts.log1p().mean((2, 3, 4)).tanh()


def gradient_penalty(score: Float[Tensor, " n"], image: Float[Tensor, "n c y x"]) -> Float[Tensor, ""]:
    """Mean of (|dD/dx| - 1)^2 (Gulrajani et al. 2017, arXiv:1704.00028, equation 3).

    `image`, on lines between real and generated images, needs gradients and leads to `score`. To be weighted with 10.
    """
    (gradient,) = torch.autograd.grad(score.sum(), image, create_graph=True)
    norm = (gradient.square().flatten(1).sum(1) + 1e-12).sqrt()  # a root has no gradient at 0
    return (norm - 1).square().mean()


def _corners(macro: Float[Tensor, "n gene section bin_y bin_x"]) -> Float[Tensor, "n4 2"]:
    """Where the micro patches of macro patches lie in them, (y, x) in {-1, 1}; order (macro patch, row, column)."""
    ends = torch.tensor([-1.0, 1.0], dtype=macro.dtype, device=macro.device)
    corners = rearrange(torch.stack(torch.meshgrid(ends, ends, indexing="ij")), "yx r k -> (r k) yx")
    return corners.repeat(len(macro), 1)


register(Method(COCO_GAN, CocoGanConfig, CocoGan))
