"""Losses of training crops: of two paths on groups of 2 x 2 patches (Tera-MIND, arXiv 2503.01220), of whole crops."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from tera_mind.diffusion.process import diffuse, target
from tera_mind.model.blocks import OnPatches
from tera_mind.model.collage import counts_to_patches, to_patches
from tera_mind.model.config import Prediction

#: value of an image where there is no section; generation pads with the same
OUTSIDE = -1.0


@dataclass
class Loss:
    """Loss of a batch, and what it is the sum of by the names under which the parts are logged."""

    total: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


@dataclass(frozen=True)
class Crops:
    """What the loss of a batch is computed from, all on one device."""

    #: in [-1, 1], two patches a side
    image: Float[Tensor, "b stain section y x"]
    #: transcripts of the same crops
    counts: Float[Tensor, "b gene gene_section bin_y bin_x"]
    #: where there is a section; elsewhere x_t is the constant outside value, without noise
    inside: Bool[Tensor, "b section y x"]
    #: a timestep a crop
    t: Integer[Tensor, " b"]
    #: standard normal
    noise: Float[Tensor, "b stain section y x"]
    #: of the schedule's timesteps
    alpha_bar: Float[Tensor, " timesteps"]


@runtime_checkable
class DualPathNetwork(OnPatches, Protocol):
    """A network that encodes patches by themselves and decodes them in place and half a patch later.

    A crop is two of its patches a side.
    """

    def __call__(
        self, x: Tensor, t: Tensor, counts: Tensor, *, patch_path: bool = True
    ) -> tuple[Tensor | None, Tensor]:
        """Patch path (4b, S*Z, P, P), or None, and boundary path (b, S*Z, side, side) of groups of 2 x 2 patches."""


def _noisy(
    crops: Crops, prediction: Prediction
) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b c y x"], Bool[Tensor, "b c y x"]]:
    """x_t, which is the constant outside value without noise where there is no section; the target; the mask."""
    a = crops.alpha_bar[crops.t][:, None, None, None]
    within = crops.inside[:, None].expand_as(crops.image).flatten(1, 2)
    clean, eps = crops.image.flatten(1, 2), crops.noise.flatten(1, 2)
    x_t = torch.where(within, diffuse(clean, eps, a), torch.full_like(clean, OUTSIDE))
    return x_t, target(prediction, clean, eps, a), within


def dual_path_loss(network: DualPathNetwork, crops: Crops, prediction: Prediction, patch_weight: float = 1.0) -> Loss:
    """patch_weight * mean((target - patch path)^2 * inside) + mean((target - boundary path)^2) on the centre.

    The means divide by all pixels, outside ones too. A boundary path with a margin is judged on its whole output,
    masked alike.
    """
    side = network.patch_px
    x_t, wanted, within = _noisy(crops, prediction)
    patches, patch_counts = to_patches(x_t, side), counts_to_patches(crops.counts, side // network.bin_px)
    patch_output, boundary_output = network(patches, crops.t, patch_counts, patch_path=patch_weight > 0)
    crop = side - boundary_output.shape[-1] // 2
    centre = (..., slice(crop, 2 * side - crop), slice(crop, 2 * side - crop))
    error = (wanted[centre] - boundary_output.float()) * within[centre].float()
    boundary = error.square().mean()
    if patch_output is None:
        return Loss(boundary, {"boundary": boundary})
    error = (to_patches(wanted, side) - patch_output.float()) * to_patches(within.float(), side)
    patch = error.square().mean()
    return Loss(patch_weight * patch + boundary, {"boundary": boundary, "patch": patch})


def crop_loss(network: nn.Module, crops: Crops, prediction: Prediction) -> Loss:
    """mean((target - network(x_t, t, counts))^2 * inside) over whole crops; the mean divides by all pixels."""
    x_t, wanted, within = _noisy(crops, prediction)
    error = (wanted - network(x_t, crops.t, crops.counts).float()) * within.float()
    return Loss(error.square().mean())
