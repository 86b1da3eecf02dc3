"""Where the image of each method comes from: the brain, a generated volume, or a control that is made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.metrics.controls import Ridge, predict_ridge
from tera_mind.metrics.plan import ENSEMBLE, NEIGHBOUR, REAL, Reference

Image = UInt8[np.ndarray, "stain y x"]


@dataclass(frozen=True)
class Sources:
    """Everything that images are read or made from; picklable, so that worker processes open it for themselves.

    mean: grey level a stain; genes: of the regression, places in the brain; within: the test box.
    """

    brain: Brain
    volumes: Mapping[str, Volume]
    ensemble: tuple[Volume, ...]
    reference: Reference
    mean: NDArray[np.uint8]
    ridge: Ridge
    within: Box

    def image(self, method: str, section: int, box: Box) -> Image:
        """(stain, y, x) of a section in a box of the test box."""
        if method == REAL:
            return self.brain.image(box, [section])[:, 0]
        if method == NEIGHBOUR:
            return self.brain.image(box, [neighbour(section, len(self.brain.sections))])[:, 0]
        if method == "mean_image":
            return np.broadcast_to(self.mean[:, None, None], (len(self.mean), box.height, box.width))
        if method == "ridge":
            return predict_ridge(self.brain, section, box, self.within, self.ridge, self.reference.own_genes)
        if method == ENSEMBLE:
            return ensemble_mean(self.members(section, box))
        return self.volumes[method].image(box, [section])[:, 0]

    def members(self, section: int, box: Box) -> UInt8[np.ndarray, "member stain y x"]:
        """The generated volume and its other seeds."""
        volumes = (self.volumes["generated"], *self.ensemble)
        return np.stack([volume.image(box, [section])[:, 0] for volume in volumes])


def ensemble_mean(members: UInt8[np.ndarray, "member stain y x"]) -> Image:
    """Pixel by pixel mean of several seeds, rounded."""
    return np.asarray(np.rint(members.mean(axis=0, dtype=np.float32)), np.uint8)


def neighbour(section: int, sections: int) -> int:
    """The section beside one, the following where there is one."""
    return section + 1 if section + 1 < sections else section - 1
