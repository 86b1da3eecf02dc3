"""The LightningModules of the baselines with and without diffusion: wiring of settings, network and loss."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from tera_mind.baselines.patch_dm import PatchDM, PatchDMConfig
from tera_mind.baselines.plain_ddpm import PlainDDPM, WholePatchConfig
from tera_mind.baselines.regression import Regression
from tera_mind.baselines.sinfusion import SinFusion, SinFusionConfig
from tera_mind.diffusion.loss import Loss, crop_loss, dual_path_loss
from tera_mind.model.config import CountTransform, Prediction
from tera_mind.module.base import MethodModule, described


class PatchDMModule(MethodModule):
    """Patch-DM: half-shifted patches, their features collaged (tera_mind/baselines/patch_dm.py).

    Args:
        genes: panel, linked from the data.
        stains: stains, linked from the data.
        pixel_um: pixel size in micrometres, linked from the data.
        intensity_range: raw value of 0 and 255 for each stain, linked from the data.
        gene_sections: gene sections in a window, linked from the data.
        patch_px: side of a small patch; a crop is two of them.
        bin_px: side of a gene bin.
        base_channels: channels at the finest level.
        channel_mult: multiplier a level, finest first.
        res_blocks: residual blocks a level.
        time_channels: width of the time embedding.
        pyramid_channels: widths of the gene pyramid, from the second coarsest level to the finest.
        attention_px: resolution at which encoder and decoder attend.
        dropout: dropout inside residual blocks.
        count_transform: `counts` (published) or `log1p`.
        prediction: `epsilon` (published), `v` or `x0`.
    """

    METHOD = "patch-dm"

    def __init__(
        self,
        genes: list[str],
        stains: list[str],
        pixel_um: float,
        intensity_range: dict[str, list[float]],
        gene_sections: int = 4,
        patch_px: int = 64,
        bin_px: int = 16,
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
        config = PatchDMConfig(
            genes=len(genes),
            stains=len(stains),
            gene_sections=gene_sections,
            patch_px=patch_px,
            bin_px=bin_px,
            base_channels=base_channels,
            channel_mult=tuple(channel_mult),
            res_blocks=res_blocks,
            time_channels=time_channels,
            pyramid_channels=tuple(pyramid_channels),
            attention_px=attention_px,
            dropout=dropout,
            count_transform=count_transform,
        )
        info = described(self.METHOD, config, prediction, genes, stains, pixel_um, intensity_range)
        super().__init__(info, PatchDM(config), **training)
        self.save_hyperparameters({**config.to_dict(), "prediction": prediction})

    def objective(
        self,
        network: nn.Module,
        image: Float[Tensor, "b stain section y x"],
        counts: Float[Tensor, "b gene gene_section bin_y bin_x"],
        inside: Bool[Tensor, "b section y x"],
        t: Integer[Tensor, " b"],
        noise: Float[Tensor, "b stain section y x"],
        alpha_bar: Float[Tensor, " timesteps"],
    ) -> Loss:
        assert isinstance(network, PatchDM)
        return dual_path_loss(network, image, counts, inside, t, noise, alpha_bar, self.info.prediction)


class WholePatchModule(MethodModule):
    """What plain diffusion and regression share: a UNet on the whole crop.

    Args:
        genes: panel, linked from the data.
        stains: stains, linked from the data.
        pixel_um: pixel size in micrometres, linked from the data.
        intensity_range: raw value of 0 and 255 for each stain, linked from the data.
        gene_sections: gene sections in a window, linked from the data.
        patch_px: half the side of a crop; the network's patch is the whole crop.
        bin_px: side of a gene bin.
        base_channels: channels at the finest level.
        channel_mult: multiplier a level, finest first.
        res_blocks: residual blocks a level.
        time_channels: width of the time embedding.
        pyramid_channels: widths of the gene pyramid, from the second coarsest level to the finest.
        attention_px: resolution at which encoder and decoder attend.
        dropout: dropout inside residual blocks.
        count_transform: `counts` or `log1p`.
    """

    #: makes the network
    NETWORK: type[PlainDDPM | Regression]

    def __init__(
        self,
        genes: list[str],
        stains: list[str],
        pixel_um: float,
        intensity_range: dict[str, list[float]],
        gene_sections: int = 4,
        patch_px: int = 64,
        bin_px: int = 16,
        base_channels: int = 64,
        channel_mult: list[int] = [1, 2, 4, 8],  # noqa: B006
        res_blocks: int = 2,
        time_channels: int = 512,
        pyramid_channels: list[int] = [128, 64, 32],  # noqa: B006
        attention_px: int = 16,
        dropout: float = 0.1,
        count_transform: CountTransform = "counts",
        prediction: Prediction = "epsilon",
        **training: Any,
    ) -> None:
        config = WholePatchConfig(
            genes=len(genes),
            stains=len(stains),
            gene_sections=gene_sections,
            patch_px=2 * patch_px,
            bin_px=bin_px,
            base_channels=base_channels,
            channel_mult=tuple(channel_mult),
            res_blocks=res_blocks,
            time_channels=time_channels,
            pyramid_channels=tuple(pyramid_channels),
            attention_px=attention_px,
            dropout=dropout,
            count_transform=count_transform,
        )
        info = described(self.METHOD, config, prediction, genes, stains, pixel_um, intensity_range)
        super().__init__(info, self.NETWORK(config), **training)
        self.save_hyperparameters({**config.to_dict(), "prediction": prediction})


class PlainDDPMModule(WholePatchModule):
    """Conditional 2-D diffusion on whole patches, no boundary path (tera_mind/baselines/plain_ddpm.py).

    Args:
        prediction: `epsilon`, `v` or `x0`.
    """

    METHOD = "plain-ddpm"
    NETWORK = PlainDDPM

    def __init__(self, prediction: Prediction = "epsilon", **settings: Any) -> None:
        super().__init__(prediction=prediction, **settings)

    def objective(
        self,
        network: nn.Module,
        image: Float[Tensor, "b stain section y x"],
        counts: Float[Tensor, "b gene gene_section bin_y bin_x"],
        inside: Bool[Tensor, "b section y x"],
        t: Integer[Tensor, " b"],
        noise: Float[Tensor, "b stain section y x"],
        alpha_bar: Float[Tensor, " timesteps"],
    ) -> Loss:
        return crop_loss(network, image, counts, inside, t, noise, alpha_bar, self.info.prediction)


class RegressionModule(WholePatchModule):
    """Deterministic UNet from genes to the mean image (tera_mind/baselines/regression.py)."""

    METHOD = "regression"
    NETWORK = Regression

    def __init__(self, **settings: Any) -> None:
        super().__init__(prediction="x0", **settings)

    def training_timesteps(self, numbers: Integer[Tensor, " b"]) -> Integer[Tensor, " b"]:
        """Zero: nothing is noised."""
        return torch.zeros_like(numbers)

    def objective(
        self,
        network: nn.Module,
        image: Float[Tensor, "b stain section y x"],
        counts: Float[Tensor, "b gene gene_section bin_y bin_x"],
        inside: Bool[Tensor, "b section y x"],
        t: Integer[Tensor, " b"],
        noise: Float[Tensor, "b stain section y x"],
        alpha_bar: Float[Tensor, " timesteps"],
    ) -> Loss:
        """mean((image - painted)^2 * inside); timesteps and noise are for the others."""
        del t, noise, alpha_bar
        error = (image.flatten(1, 2) - network(counts).float()) * inside[:, None].expand_as(image).flatten(1, 2)
        return Loss(error.square().mean())


class SinFusionModule(MethodModule):
    """SinFusion: a chain of ConvNeXt blocks without downsampling (tera_mind/baselines/sinfusion.py).

    Args:
        genes: panel, linked from the data.
        stains: stains, linked from the data.
        pixel_um: pixel size in micrometres, linked from the data.
        intensity_range: raw value of 0 and 255 for each stain, linked from the data.
        gene_sections: gene sections in a window, linked from the data.
        patch_px: side of a patch; a crop is two of them.
        bin_px: side of a gene bin.
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
        genes: list[str],
        stains: list[str],
        pixel_um: float,
        intensity_range: dict[str, list[float]],
        gene_sections: int = 4,
        patch_px: int = 64,
        bin_px: int = 16,
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
            genes=len(genes),
            stains=len(stains),
            gene_sections=gene_sections,
            patch_px=patch_px,
            bin_px=bin_px,
            width=width,
            blocks=blocks,
            time_channels=time_channels,
            pyramid_channels=tuple(pyramid_channels),
            count_transform=count_transform,
            halo_px=halo_px,
        )
        info = described(self.METHOD, config, prediction, genes, stains, pixel_um, intensity_range)
        super().__init__(info, SinFusion(config), **training)
        self.save_hyperparameters({**config.to_dict(), "prediction": prediction})

    def objective(
        self,
        network: nn.Module,
        image: Float[Tensor, "b stain section y x"],
        counts: Float[Tensor, "b gene gene_section bin_y bin_x"],
        inside: Bool[Tensor, "b section y x"],
        t: Integer[Tensor, " b"],
        noise: Float[Tensor, "b stain section y x"],
        alpha_bar: Float[Tensor, " timesteps"],
    ) -> Loss:
        return crop_loss(network, image, counts, inside, t, noise, alpha_bar, self.info.prediction)
