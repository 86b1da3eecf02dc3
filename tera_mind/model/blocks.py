"""What a sampler needs of a denoising network: one pass over blocks of whole patches and what lies around them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Integer
from torch import Tensor


@runtime_checkable
class BlockNetwork(Protocol):
    """Denoises blocks of any number of patches; every sampler and every diffusion method meet here.

    A block's output depends on its own pixels and bins and on those at most `halo_px` around them, and on nothing
    else: that is what makes tiled generation exact.
    """

    @property
    def patch_px(self) -> int:
        """Side of a patch; regions and blocks are whole patches."""

    @property
    def bin_px(self) -> int:
        """Side of a gene bin; divides `patch_px` and `halo_px`."""

    @property
    def halo_px(self) -> int:
        """How far around a block one pass looks."""

    @property
    def channels(self) -> int:
        """Stains times image sections; channel = stain * sections + section."""

    @property
    def training(self) -> bool:
        """Whether dropout is live, which a sampler refuses."""

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
