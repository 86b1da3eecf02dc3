"""Scores of painted validation tissue: nuclei, PSNR and SSIM, by stain and section."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import lightning
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from callbacks.output import write_table
from callbacks.pictures import PaintingCallback
from callbacks.regions import Region, paint
from tera_mind.formats.transcripts import Transcripts
from tera_mind.geometry import Box
from tera_mind.metrics.fidelity import SSIM_WINDOW_PX, cut, psnr, ssim
from tera_mind.metrics.nuclei.match import match
from tera_mind.metrics.nuclei.segmenters import NucleusSettings, Watershed
from tera_mind.metrics.nuclei.table import measure_nuclei
from tera_mind.module import MethodModule

#: stains whose nuclei are looked at
NUCLEAR = ("dapi", "hoechst", "dna")


class Score(NamedTuple):
    """One figure of one plane of one region."""

    metric: str
    stain: str
    section: int
    value: float


class Morphometrics(PaintingCallback):
    """Compares painted with real tissue: `val/psnr/STAIN`, `val/ssim/STAIN`, `val/nuclei_*/STAIN`.

    PSNR (dB) and SSIM are means over whole patches; for a nuclear stain `nuclei_count_ratio` and `nuclei_area_ratio`
    (medians) are generated over real, `nuclei_f1` is at an overlap of one half. By section: `morphometrics/step=N.csv`
    in the run's folder, and the table `morphometrics` in W&B. Pictures are shared with a `DDIMSampling` of as many
    regions and steps.
    """

    def __init__(
        self, regions: int = 2, steps: int = 15, nucleus_um: float = 8.0, every_n_validations: int = 1
    ) -> None:
        """What and how often.

        Args:
            regions: regions of the validation tissue, of at most 8 x 8 patches.
            steps: DDIM steps.
            nucleus_um: typical diameter of a nucleus.
            every_n_validations: measures in every so many validations.
        """
        super().__init__(regions, every_n_validations)
        self.steps, self.nucleus = steps, NucleusSettings(diameter_um=float(nucleus_um))

    def look(self, trainer: lightning.Trainer, module: MethodModule, regions: list[Region]) -> None:
        pictures = paint(trainer, module, regions, self.steps)
        scores = [
            score
            for region, picture in zip(regions, pictures, strict=True)
            for score in self._scores(module, region, picture)
        ]
        groups: dict[tuple[str, str, int], list[float]] = {}
        for score in scores:
            groups.setdefault((score.metric, score.stain, score.section), []).append(score.value)
        rows = [
            {
                "metric": metric,
                "stain": stain,
                "section": section,
                "value": float(np.mean(values)),
                "regions": len(values),
            }
            for (metric, stain, section), values in sorted(groups.items())
        ]
        write_table(trainer, "morphometrics", rows)
        for metric, stain in sorted({(score.metric, score.stain) for score in scores}):
            values = [score.value for score in scores if (score.metric, score.stain) == (metric, stain)]
            module.log(f"val/{metric}/{stain}", float(np.mean(values)), batch_size=1, rank_zero_only=False)

    def _scores(self, module: MethodModule, region: Region, picture: NDArray[np.uint8]) -> Iterator[Score]:
        """All figures of a region; planes and edges that the brain does not have are left out."""
        info = module.info
        inside = region.inside.shift(-region.box.y0, -region.box.x0)
        whole = region.crop_px
        boxes = [box for box in inside.tiles(whole, whole) if (box.height, box.width) == (whole, whole)]
        real = region.real
        for plane in np.flatnonzero(region.exists).tolist():
            section = region.slab.first_section + plane
            for index, stain in enumerate(info.stains):
                pair = picture[index, plane], real[index, plane]
                if boxes and whole >= SSIM_WINDOW_PX:
                    patches = [cut(image, boxes) for image in pair]
                    yield Score("psnr", stain, section, float(psnr(*patches).mean()))
                    yield Score("ssim", stain, section, float(ssim(*patches).mean()))
                if stain.lower() in NUCLEAR:
                    for metric, value in self._nuclei(
                        pair[0][inside.slices()], pair[1][inside.slices()], info.pixel_um
                    ):
                        yield Score(metric, stain, section, value)

    def _nuclei(
        self, generated: UInt8[np.ndarray, "y x"], real: UInt8[np.ndarray, "y x"], pixel_um: float
    ) -> Iterator[tuple[str, float]]:
        """Figures that exist: without real nuclei there is no ratio."""
        segmenter = Watershed(pixel_um, self.nucleus)
        scale = segmenter.calibrate([real])
        box = Box(0, real.shape[0], 0, real.shape[1])
        found, expected = (segmenter.segment(image, scale) for image in (generated, real))
        tables = [
            measure_nuclei(labels, image, pixel_um, box, box, Transcripts.empty(), section=0)
            for labels, image in ((found, generated), (expected, real))
        ]
        if len(tables[1]):
            yield "nuclei_count_ratio", len(tables[0]) / len(tables[1])
            yield "nuclei_f1", match(found, expected).f1
            if len(tables[0]):
                yield "nuclei_area_ratio", float(np.median(tables[0].area_um2) / np.median(tables[1].area_um2))
