"""The LightningModule of Tera-MIND: wiring of settings, network and loss."""

from __future__ import annotations

from typing import Any

from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from tera_mind.diffusion.loss import Loss, dual_path_loss
from tera_mind.errors import InputError
from tera_mind.model.config import CountTransform, ModelConfig, Prediction
from tera_mind.model.methods import TERA_MIND
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.module.base import MethodModule, described


class GeneMorphModule(MethodModule):
    """Trains a `GeneMorphUNet` on batches of `PairsDataModule`.

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
        gene_rank: width of a low-rank first pyramid convolution; null is the dense, published one.
        gene_residual: residual around the gene-gene block (published: none).
        margin_px: rim the boundary path decodes and crops away (published: 0).
        prediction: `epsilon` (published), `v` or `x0`.
        patch_weight: weight of the patch path's loss (published: 1); 0 leaves the patch path out.
        activation_checkpointing: keep only the input of each UNet block and compute the rest again on the way back:
            less memory for a third to a half more time, the same gradients.
    """

    METHOD = TERA_MIND

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
        gene_rank: int | None = None,
        gene_residual: bool = False,
        margin_px: int = 0,
        prediction: Prediction = "epsilon",
        patch_weight: float = 1.0,
        activation_checkpointing: bool = False,
        **training: Any,
    ) -> None:
        config = ModelConfig(
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
            gene_rank=gene_rank,
            gene_residual=gene_residual,
            margin_px=margin_px,
        )
        if patch_weight < 0:
            raise InputError(f"patch_weight must be at least 0, got {patch_weight}")
        info = described(self.METHOD, config, prediction, genes, stains, pixel_um, intensity_range)
        network = GeneMorphUNet(config)
        network.recompute = activation_checkpointing
        super().__init__(info, network, **training)
        self.save_hyperparameters(
            config.to_dict()
            | {
                "prediction": prediction,
                "patch_weight": patch_weight,
                "activation_checkpointing": activation_checkpointing,
            }
        )

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
        assert isinstance(network, GeneMorphUNet)
        weight = self.hparams["patch_weight"]
        return dual_path_loss(network, image, counts, inside, t, noise, alpha_bar, self.info.prediction, weight)
