"""One model, several numbers of DDIM steps: how many are enough."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
import numpy as np

from callbacks.output import write_pictures, write_table
from callbacks.pictures import PaintingCallback
from callbacks.regions import Region, paint
from callbacks.sampling import side_by_side
from tera_mind.diffusion.schedule import respace
from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.metrics.fidelity import cut, psnr, ssim
from tera_mind.module import MethodModule


class StepsAblation(PaintingCallback):
    """Paints the same regions from the same noise with different numbers of DDIM steps; scores each (paper: Fig. 6).

    `val/psnr_N_steps/STAIN` and `val/ssim_N_steps/STAIN`; `steps/step=N.csv` and a picture of the first region for
    every number in the run's folder, the same in W&B. Costs as many passes as the numbers add up to: use it seldom.
    """

    def __init__(
        self,
        steps: Sequence[int] = (4, 5, 8, 10, 15, 25, 50),
        regions: int = 1,
        every_n_validations: int = 10,
    ) -> None:
        """What and how often.

        Args:
            steps: numbers of DDIM steps.
            regions: regions of the validation tissue, of at most 8 x 8 patches.
            every_n_validations: runs in every so many validations.
        """
        super().__init__(regions, every_n_validations)
        self.steps = list(steps)
        if not self.steps:
            raise InputError("the numbers of steps to compare are missing: steps should name at least one")
        for number in self.steps:
            respace(number)  # refuses a number that does not exist

    def look(self, trainer: lightning.Trainer, module: MethodModule, regions: list[Region]) -> None:
        rows = []
        pictures = {}
        for steps in self.steps:
            painted = paint(trainer, module, regions, steps)
            pictures[f"{steps} steps"] = side_by_side(regions[0].real, painted[0])
            for index, stain in enumerate(module.info.stains):
                real, generated = (
                    np.concatenate(
                        [_patches(region, image[index]) for region, image in zip(regions, images, strict=True)]
                    )
                    for images in ([region.real for region in regions], painted)
                )
                if not len(real):
                    continue
                scores = {"psnr": float(psnr(generated, real).mean()), "ssim": float(ssim(generated, real).mean())}
                rows.append({"steps": steps, "stain": stain, **scores})
                for metric, value in scores.items():
                    module.log(f"val/{metric}_{steps}_steps/{stain}", value, batch_size=1)
        write_table(trainer, "steps", rows)
        write_pictures(trainer, "steps", pictures)


def _patches(region: Region, image: np.ndarray) -> np.ndarray:
    """Whole pictures of the existing planes, cut to what lies on the canvas: (plane, y, x)."""
    inside = region.inside.shift(-region.box.y0, -region.box.x0)
    planes = [image[plane] for plane in np.flatnonzero(region.exists)]
    side = min(inside.height, inside.width)
    square = Box(inside.y0, inside.y0 + side, inside.x0, inside.x0 + side)
    return (
        np.concatenate([cut(plane, [square]) for plane in planes]) if planes and side else np.zeros((0, 1, 1), np.uint8)
    )
