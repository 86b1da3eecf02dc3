"""Loss of the two paths on groups of 2 x 2 patches (Tera-MIND, arXiv 2503.01220)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from tera_mind.diffusion.process import diffuse, target
from tera_mind.model.collage import counts_to_patches, to_patches
from tera_mind.model.config import Prediction
from tera_mind.model.unet import GeneMorphUNet

#: value of an image where there is no section; generation pads with the same
OUTSIDE = -1.0


@dataclass
class DualLoss:
    """Losses of a batch; `patch` is zero where the patch path was left out."""

    total: Float[Tensor, ""]
    patch: Float[Tensor, ""]
    boundary: Float[Tensor, ""]


def dual_path_loss(
    network: GeneMorphUNet,
    image: Float[Tensor, "b stain section y x"],
    counts: Float[Tensor, "b gene gene_section bin_y bin_x"],
    inside: Bool[Tensor, "b section y x"],
    t: Integer[Tensor, " b"],
    noise: Float[Tensor, "b stain section y x"],
    alpha_bar: Float[Tensor, " timesteps"],
    prediction: Prediction,
    patch_weight: float = 1.0,
) -> DualLoss:
    """patch_weight * mean((target - patch path)^2 * inside) + mean((target - boundary path)^2) on the centre.

    image and noise: crops of two patches a side, image in [-1, 1]. Where `inside` is false x_t is the constant
    outside value, without noise; the means still divide by all pixels. A boundary path with a margin is judged on
    its whole output, masked alike.
    """
    config = network.config
    side, margin = config.patch_px, config.margin_px
    a = alpha_bar[t][:, None, None, None]
    within = inside[:, None].expand_as(image).flatten(1, 2)
    clean, eps = image.flatten(1, 2), noise.flatten(1, 2)
    x_t = torch.where(within, diffuse(clean, eps, a), torch.full_like(clean, OUTSIDE))
    wanted = target(prediction, clean, eps, a)
    patches, patch_counts = to_patches(x_t, side), counts_to_patches(counts, config.bins)
    patch_output, boundary_output = network(patches, t, patch_counts, patch_path=patch_weight > 0)
    if patch_output is not None:
        error = (to_patches(wanted, side) - patch_output.float()) * to_patches(within.float(), side)
        patch = error.square().mean()
    else:
        patch = wanted.new_zeros(())
    crop = side // 2 - margin
    centre = (..., slice(crop, 2 * side - crop), slice(crop, 2 * side - crop))
    error = (wanted[centre] - boundary_output.float()) * within[centre].float()
    boundary = error.square().mean()
    return DualLoss(patch_weight * patch + boundary, patch, boundary)
