"""What data say of the inputs and outputs of a network that is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict


class Sizes(TypedDict):
    """The fields of a `BlockConfig` that come from the data."""

    genes: int
    stains: int
    gene_sections: int
    patch_px: int
    bin_px: int


@dataclass(frozen=True)
class Inputs:
    """Panel, stains, scales, and the grid on which crops are cut; `PairsDataModule.inputs` of a folder of shards."""

    #: gene names, in the order of the counts
    genes: tuple[str, ...]
    #: stain names, in the order of the image's channels
    stains: tuple[str, ...]
    #: pixel size in micrometres
    pixel_um: float
    #: raw value of 0 and of 255, a stain
    intensity_range: Mapping[str, tuple[float, float]]
    #: gene sections in a window: 1, 4, 8 or 16
    gene_sections: int
    #: half the side of a crop; what the patch of a method is made of
    patch_px: int
    #: side of a gene bin; divides `patch_px`
    bin_px: int

    @property
    def sizes(self) -> Sizes:
        """What a `BlockConfig` begins with; a method whose patch is another gives the `sizes` of a changed copy."""
        return {
            "genes": len(self.genes),
            "stains": len(self.stains),
            "gene_sections": self.gene_sections,
            "patch_px": self.patch_px,
            "bin_px": self.bin_px,
        }
