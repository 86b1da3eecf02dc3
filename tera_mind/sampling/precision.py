"""Networks of other methods in half precision: the same calls under autocast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork, NoisePlane, Painter


class _Narrow:
    """What both kinds of network say of themselves, handed on."""

    def __init__(self, network: BlockNetwork | Painter, device: torch.device) -> None:
        self._device = device
        self.patch_px, self.bin_px, self.halo_px = network.patch_px, network.bin_px, network.halo_px
        self.channels, self.training = network.channels, network.training

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16)


class NarrowBlocks(_Narrow):
    """A `BlockNetwork` in bfloat16."""

    def __init__(self, network: BlockNetwork, device: torch.device) -> None:
        super().__init__(network, device)
        self._network = network

    def predict(
        self,
        window: Float[Tensor, "n channel y x"],
        t: Integer[Tensor, " n"],
        counts: Float[Tensor, "n gene section bin_y bin_x"],
    ) -> Float[Tensor, "n channel y2 x2"]:
        """See `BlockNetwork`."""
        with self._autocast():
            return self._network.predict(window, t, counts).float()


class NarrowPainter(_Narrow):
    """A `Painter` in bfloat16."""

    def __init__(self, network: Painter, device: torch.device) -> None:
        super().__init__(network, device)
        self._network = network
        self.tile_exact = network.tile_exact

    def noise_planes(self, bins: Box) -> Sequence[NoisePlane]:
        """See `Painter`."""
        return self._network.noise_planes(bins)

    def paint(
        self, counts: Float[Tensor, "n gene section bin_y bin_x"], noise: Sequence[Float[Tensor, "n _ _"]]
    ) -> Float[Tensor, "n channel y x"]:
        """See `Painter`."""
        with self._autocast():
            return self._network.paint(counts, noise).float()
