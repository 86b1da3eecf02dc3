"""The shape of a network, with its limits checked before anything is allocated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tera_mind import geometry
from tera_mind.errors import InputError

#: largest panel whose first pyramid convolution is dense (9 to 81 times G^2 weights); above it `gene_rank` is needed
MAX_DENSE_GENES = 1500

CountTransform = Literal["counts", "log1p"]
#: what the network's output means: the noise (published), the velocity, or the image
Prediction = Literal["epsilon", "v", "x0"]


@dataclass(frozen=True)
class BlockConfig(ABC):
    """What the network of every method has: panel, stains, sections, patches and bins.

    Raises `InputError` where they do not fit together.
    """

    #: number of genes of the panel, G
    genes: int
    #: number of stains, S
    stains: int = 2
    #: gene sections Zg that enter: 1, 4, 8 or 16; image sections Z that leave: 1, 2, 4, 8
    gene_sections: int = 4
    #: side of a patch; regions and blocks are whole patches
    patch_px: int = 64
    #: side of a square bin in which transcripts are counted; n = patch_px / bin_px
    bin_px: int = 16

    def __post_init__(self) -> None:
        geometry.image_sections(self.gene_sections)
        if min(self.genes, self.stains, self.patch_px, self.bin_px) < 1 or self.patch_px % self.bin_px:
            raise InputError(
                "genes, stains, patch_px and bin_px must all be at least 1 and patch_px a multiple of bin_px, got "
                f"{self.genes}, {self.stains}, {self.patch_px} and {self.bin_px}"
            )

    @property
    def sections(self) -> int:
        """Image sections Z."""
        return geometry.image_sections(self.gene_sections)

    @property
    def image_channels(self) -> int:
        """Channels of a flattened image, S * Z; channel = stain * Z + section."""
        return self.stains * self.sections

    @property
    def bins(self) -> int:
        """Bins along a patch, n."""
        return self.patch_px // self.bin_px

    @property
    @abstractmethod
    def halo_px(self) -> int:
        """How far around a block one pass of the network looks; a multiple of `bin_px`."""

    @property
    @abstractmethod
    def tile_exact(self) -> bool:
        """Whether a region generated in tiles is the one generated in a single pass."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BlockConfig:
        sizes: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**sizes)


@dataclass(frozen=True)
class UNetShape(BlockConfig):
    """Sizes that every UNet on patches has; the defaults are the published ones of Tera-MIND."""

    base_channels: int = 64
    #: one entry a resolution level, finest first
    channel_mult: tuple[int, ...] = (1, 2, 4, 8)
    res_blocks: int = 2
    time_channels: int = 512
    #: gene-pyramid widths from the second coarsest level to the finest; the coarsest has G, or `gene_rank`
    pyramid_channels: tuple[int, ...] = (128, 64, 32)
    #: resolution (side of a patch in pixels) at which encoder and decoder attend
    attention_px: int = 16
    dropout: float = 0.1
    #: how counts enter: as they are (published) or as log(1 + count)
    count_transform: CountTransform = "counts"


@dataclass(frozen=True)
class ModelConfig(UNetShape):
    """Sizes of the gene-morph network; the defaults are the published ones. A training crop is two patches a side.

    Raises `InputError` where sizes do not fit together or the panel is too large for a dense pyramid.
    """

    #: width of a low-rank first pyramid convolution; None is the published dense one
    gene_rank: int | None = None
    #: add the counts to the output of the gene-gene block (the published block has no residual)
    gene_residual: bool = False
    #: boundary path: rim decoded around each patch and cropped away; 0 is published
    margin_px: int = 0

    def __post_init__(self) -> None:
        geometry.image_sections(self.gene_sections)
        levels = len(self.channel_mult)
        if min(self.genes, self.stains, self.base_channels, self.res_blocks, self.bin_px, self.patch_px) < 1:
            raise InputError("genes, stains, channels, res_blocks, bin_px and patch_px must all be at least 1")
        if len(self.pyramid_channels) != levels - 1:
            raise InputError(
                f"pyramid_channels needs one width less than channel_mult has levels ({levels - 1}), "
                f"got {len(self.pyramid_channels)}"
            )
        if self.patch_px % self.bin_px or self.patch_px % 2**levels:
            raise InputError(
                f"patch_px must be a multiple of bin_px ({self.bin_px}) and of {2**levels}, got {self.patch_px}"
            )
        if self.deepest_px % self.bins or self.deepest_px < self.bins:
            raise InputError(
                f"bins of {self.bin_px} px give {self.bins} bins a patch, finer than the deepest level "
                f"({self.deepest_px} px); use bin_px of at least {2 ** (levels - 1)}"
            )
        if self.margin_px not in {0, self.patch_px // 4, self.patch_px // 2}:
            raise InputError(f"margin_px must be 0, a quarter or half of patch_px, got {self.margin_px}")
        if self.margin_px * self.deepest_px % self.patch_px:
            raise InputError(
                f"a margin of {self.margin_px} px is no whole number of positions at the deepest level, where a patch "
                f"is {self.deepest_px}: use margin_px {self.patch_px // 2} or 0, or fewer levels"
            )
        if self.gene_rank is None and self.genes > MAX_DENSE_GENES:
            raise InputError(
                f"a dense gene pyramid takes at most {MAX_DENSE_GENES} genes, got {self.genes}: "
                "set model.gene_rank (for example 128) to use the low-rank variant"
            )

    @property
    def deepest_px(self) -> int:
        """Side of a small patch at the deepest level."""
        return self.patch_px // (1 << (len(self.channel_mult) - 1))

    @property
    def gene_channels(self) -> tuple[int, ...]:
        """Channels of the gene pyramid, coarsest first."""
        return (self.gene_rank or self.genes, *self.pyramid_channels)

    @property
    def halo_px(self) -> int:
        """How far beyond its own patch one step of the boundary path looks: half of each neighbour."""
        return self.patch_px // 2

    @property
    def tile_exact(self) -> bool:
        return True
