"""The LightningModule of Tera-MIND: wiring of settings, network and loss."""

from __future__ import annotations

from typing import Any

from torch import nn

from tera_mind.diffusion.loss import Crops, Loss, dual_path_loss
from tera_mind.errors import InputError
from tera_mind.model.config import ModelConfig
from tera_mind.model.inputs import Inputs
from tera_mind.model.methods import TERA_MIND
from tera_mind.model.unet import GeneMorphUNet
from tera_mind.module.unet import UNetModule


class GeneMorphModule(UNetModule):
    """Trains a `GeneMorphUNet` on batches of `PairsDataModule`; a crop is two patches a side.

    Args:
        gene_rank: width of a low-rank first pyramid convolution; null is the dense, published one.
        gene_residual: residual around the gene-gene block (published: none).
        margin_px: rim the boundary path decodes and crops away (published: 0).
        patch_weight: weight of the patch path's loss (published: 1); 0 leaves the patch path out.
        activation_checkpointing: keep only the input of each UNet block and compute the rest again on the way back:
            less memory for a third to a half more time, the same gradients.
    """

    METHOD = TERA_MIND
    CONFIG = ModelConfig
    NETWORK = GeneMorphUNet
    network: GeneMorphUNet

    def __init__(
        self,
        inputs: Inputs,
        gene_rank: int | None = None,
        gene_residual: bool = False,
        margin_px: int = 0,
        patch_weight: float = 1.0,
        activation_checkpointing: bool = False,
        **settings: Any,
    ) -> None:
        if patch_weight < 0:
            raise InputError(f"patch_weight must be at least 0, got {patch_weight}")
        more = {"gene_rank": gene_rank, "gene_residual": gene_residual, "margin_px": margin_px}
        super().__init__(inputs, more, **settings)
        self.network.recompute = activation_checkpointing
        self.save_hyperparameters({"patch_weight": patch_weight, "activation_checkpointing": activation_checkpointing})

    def objective(self, network: nn.Module, crops: Crops) -> Loss:
        assert isinstance(network, GeneMorphUNet)
        return dual_path_loss(network, crops, self.info.prediction, self.hparams["patch_weight"])
