"""What a sampler needs of a network: one pass over blocks of whole patches and what lies around them.

Two kinds: a `BlockNetwork` denoises and is called at every step; a `Painter` needs one pass, from genes (and noise) to
the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Integer
from torch import Tensor

from tera_mind.geometry import Box


class OnPatches(Protocol):
    """The grid of a network's inputs and outputs."""

    @property
    def patch_px(self) -> int:
        """Side of a patch; regions and blocks are whole patches."""

    @property
    def bin_px(self) -> int:
        """Side of a gene bin; divides `patch_px`."""


class OnBlocks(OnPatches, Protocol):
    """What the two kinds have in common; `isinstance` asks for these properties too."""

    @property
    def halo_px(self) -> int:
        """How far around a block one pass looks, at counts and, where it is given one, at the image.

        A multiple of `bin_px`.
        """

    @property
    def channels(self) -> int:
        """Stains times image sections; channel = stain * sections + section."""

    @property
    def training(self) -> bool:
        """Whether dropout and the like are live, which a sampler refuses."""


@runtime_checkable
class BlockNetwork(OnBlocks, Protocol):
    """Denoises blocks of any number of patches; every sampler and every diffusion method meet here.

    A block's output depends on its own pixels and bins and on those at most `halo_px` around them, and on nothing
    else: that is what makes tiled generation exact.
    """

    def predict(
        self,
        window: Float[Tensor, "n channel y x"],
        t: Integer[Tensor, " n"],
        counts: Float[Tensor, "n gene section bin_y bin_x"],
    ) -> Float[Tensor, "n channel y2 x2"]:
        """Network output (noise, velocity or image) on n blocks of one shape, in float32 or wider.

        window: x_t of the blocks with `halo_px` around them; t: a timestep a block; counts: of the same windows, on
        any device. The output lacks the halo and lies on the network's device.
        """


@dataclass(frozen=True)
class NoisePlane:
    """Where on a layer's own grid the standard normal numbers lie that the layer takes for one window."""

    box: Box
    #: the same numbers for all section groups of a brain, as a style of the whole brain needs
    shared: bool = False


@runtime_checkable
class Painter(OnBlocks, Protocol):
    """Paints blocks of any number of patches in one pass; the methods without steps meet here.

    Noise is not drawn inside: a painter names the planes of numbers that a window takes, each on the grid of its own
    layer, and is handed them. Where tiles of one image overlap they name the same places, and so get the same numbers.
    """

    @property
    def tile_exact(self) -> bool:
        """Whether a region painted in tiles is the region painted at once."""

    def noise_planes(self, bins: Box) -> Sequence[NoisePlane]:
        """What noise a window takes, a plane a layer, always the same number of them; none for a method without noise.

        bins: the window, halo included, in gene bins of the brain.
        """

    def paint(
        self,
        counts: Float[Tensor, "n gene section bin_y bin_x"],
        noise: Sequence[Float[Tensor, "n _ _"]],
    ) -> Float[Tensor, "n channel y x"]:
        """Image in [-1, 1] of n blocks of one shape, in float32 or wider, on the network's device, without the halo.

        counts: of the blocks with `halo_px` around them; noise: what `noise_planes` asks for; both on any device.
        """
