"""What the LightningModules of methods with a UNet on patches share: the settings of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from tera_mind.model.config import CountTransform, Prediction, UNetShape
from tera_mind.model.inputs import Inputs
from tera_mind.module.base import MethodModule


class UNetModule(MethodModule):
    """A method whose network is a UNet on patches.

    Args:
        more: sizes that the method's own configuration has beside those of every UNet.
        base_channels: channels at the finest level.
        channel_mult: multiplier a level, finest first.
        res_blocks: residual blocks a level.
        time_channels: width of the time embedding.
        pyramid_channels: widths of the gene pyramid, from the second coarsest level to the finest.
        attention_px: resolution at which encoder and decoder attend.
        dropout: dropout inside residual blocks.
        count_transform: `counts` (as Tera-MIND's is published) or `log1p`.
        prediction: `epsilon` (as Tera-MIND's is published), `v` or `x0`.
    """

    #: sizes of the network, and what is made of them
    CONFIG: ClassVar[type[UNetShape]]
    NETWORK: ClassVar[type[nn.Module]]
    #: the network's patch over `data.patch_px`
    PATCHES: ClassVar[int] = 1

    def __init__(
        self,
        inputs: Inputs,
        more: Mapping[str, Any],
        base_channels: int = 64,
        channel_mult: list[int] = [1, 2, 4, 8],  # noqa: B006 (never changed; a plain list prints well in YAML)
        res_blocks: int = 2,
        time_channels: int = 512,
        pyramid_channels: list[int] = [128, 64, 32],  # noqa: B006
        attention_px: int = 16,
        dropout: float = 0.1,
        count_transform: CountTransform = "counts",
        prediction: Prediction = "epsilon",
        **training: Any,
    ) -> None:
        config = self.CONFIG(
            **replace(inputs, patch_px=self.PATCHES * inputs.patch_px).sizes,
            base_channels=base_channels,
            channel_mult=tuple(channel_mult),
            res_blocks=res_blocks,
            time_channels=time_channels,
            pyramid_channels=tuple(pyramid_channels),
            attention_px=attention_px,
            dropout=dropout,
            count_transform=count_transform,
            **more,
        )
        super().__init__(inputs, config, self.NETWORK(config), prediction, **training)
