"""Pictures of unseen tissue during training, beside the real ones."""

from __future__ import annotations

import lightning
import numpy as np
from numpy.typing import NDArray

from callbacks.output import write_pictures
from callbacks.pictures import PaintingCallback
from callbacks.regions import Region, paint
from tera_mind.module import MethodModule

#: grey between real and generated
_GAP_PX, _GAP = 4, 128


class DDIMSampling(PaintingCallback):
    """Paints fixed regions of the validation tissue with fixed noise.

    Real above, generated below, a column a stain and section: `samples/step=N-K.png` in the run's folder,
    and `samples` in W&B.
    """

    def __init__(self, regions: int = 2, steps: int = 15, every_n_validations: int = 1) -> None:
        """What and how often.

        Args:
            regions: regions of the validation tissue, of at most 8 x 8 patches.
            steps: DDIM steps.
            every_n_validations: paints in every so many validations.
        """
        super().__init__(regions, every_n_validations)
        self.steps = steps

    def look(self, trainer: lightning.Trainer, module: MethodModule, regions: list[Region]) -> None:
        pictures = paint(trainer, module, regions, self.steps)
        stains = module.info.stains
        write_pictures(
            trainer,
            "samples",
            {
                f"{region.name}: {', '.join(stains)}; real above": side_by_side(region.real, picture)
                for region, picture in zip(regions, pictures, strict=True)
            },
        )


def side_by_side(real: NDArray[np.uint8], generated: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two images (stain, section, y, x) as one picture: real above generated, a column a stain and section."""
    rows = []
    for image in (real, generated):
        planes = image.reshape(-1, *image.shape[2:])
        padded = np.pad(planes, ((0, 0), (0, _GAP_PX), (0, _GAP_PX)), constant_values=_GAP)
        rows.append(np.concatenate([*padded], axis=1))
    return np.concatenate(rows)[:-_GAP_PX, :-_GAP_PX]
