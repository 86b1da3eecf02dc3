"""The LightningModules of the baselines with and without diffusion: wiring of settings, network and loss."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Integer
from torch import Tensor, nn

from tera_mind.baselines.patch_dm import PatchDM, PatchDMConfig
from tera_mind.baselines.plain_ddpm import PlainDDPM, WholePatchConfig
from tera_mind.baselines.regression import Regression
from tera_mind.baselines.sinfusion import SinFusion, SinFusionConfig
from tera_mind.diffusion.loss import Crops, Loss, crop_loss, dual_path_loss
from tera_mind.model.config import CountTransform, Prediction
from tera_mind.model.inputs import Inputs
from tera_mind.module.base import MethodModule
from tera_mind.module.unet import UNetModule


class PatchDMModule(UNetModule):
    """Patch-DM: half-shifted patches, their features collaged (tera_mind/baselines/patch_dm.py)."""

    METHOD = "patch-dm"
    CONFIG = PatchDMConfig
    NETWORK = PatchDM

    def __init__(self, inputs: Inputs, **settings: Any) -> None:
        super().__init__(inputs, {}, **settings)

    def objective(self, network: nn.Module, crops: Crops) -> Loss:
        assert isinstance(network, PatchDM)
        return dual_path_loss(network, crops, self.info.prediction)


class PlainDDPMModule(UNetModule):
    """Conditional 2-D diffusion on whole patches, no boundary path (tera_mind/baselines/plain_ddpm.py)."""

    METHOD = "plain-ddpm"
    CONFIG = WholePatchConfig
    NETWORK = PlainDDPM
    PATCHES = 2

    def __init__(self, inputs: Inputs, **settings: Any) -> None:
        super().__init__(inputs, {}, **settings)

    def objective(self, network: nn.Module, crops: Crops) -> Loss:
        return crop_loss(network, crops, self.info.prediction)


class RegressionModule(UNetModule):
    """Deterministic UNet from genes to the mean image (tera_mind/baselines/regression.py)."""

    METHOD = "regression"
    CONFIG = WholePatchConfig
    NETWORK = Regression
    PATCHES = 2

    def __init__(self, inputs: Inputs, **settings: Any) -> None:
        super().__init__(inputs, {}, prediction="x0", **settings)

    def training_timesteps(self, numbers: Integer[Tensor, " b"]) -> Integer[Tensor, " b"]:
        """Zero: nothing is noised."""
        return torch.zeros_like(numbers)

    def objective(self, network: nn.Module, crops: Crops) -> Loss:
        """mean((image - painted)^2 * inside); timesteps and noise are for the others."""
        error = crops.image.flatten(1, 2) - network(crops.counts).float()
        error = error * crops.inside[:, None].expand_as(crops.image).flatten(1, 2)
        return Loss(error.square().mean())


class SinFusionModule(MethodModule):
    """SinFusion: a chain of ConvNeXt blocks without downsampling (tera_mind/baselines/sinfusion.py).

    Args:
        width: channels of a block (published: 64); more to match the capacity of another method.
        blocks: ConvNeXt blocks, an even number (published: 16).
        time_channels: width of the time embedding.
        pyramid_channels: widths of the gene pyramid down to single pixels, after G.
        count_transform: `counts` (published) or `log1p`.
        halo_px: pixels around a tile that generation reads; too few leave seams.
        prediction: `epsilon` (as adapted), `v` or `x0`.
    """

    METHOD = "sinfusion"

    def __init__(
        self,
        inputs: Inputs,
        width: int = 64,
        blocks: int = 16,
        time_channels: int = 256,
        pyramid_channels: list[int] = [128, 64, 32],  # noqa: B006
        count_transform: CountTransform = "counts",
        halo_px: int = 64,
        prediction: Prediction = "epsilon",
        **training: Any,
    ) -> None:
        config = SinFusionConfig(
            **inputs.sizes,
            width=width,
            blocks=blocks,
            time_channels=time_channels,
            pyramid_channels=tuple(pyramid_channels),
            count_transform=count_transform,
            halo_px=halo_px,
        )
        super().__init__(inputs, config, SinFusion(config), prediction, **training)

    def objective(self, network: nn.Module, crops: Crops) -> Loss:
        return crop_loss(network, crops, self.info.prediction)
