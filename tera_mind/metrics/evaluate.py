"""A generated volume against the real brain, with its controls: what `tera-mind evaluate` and the demo call.

`metrics.json` (written by `Evaluation.write`, schema version 2; numbers are floats, an uncomputable one is null):

    {"format": "metrics", "version": 2,
     "settings": {"brain", "brain_fingerprint", "pixel_um", "stains", "sections", "section_names", "test_box": [y0, y1,
                  x0, x1], "train_box", "ceiling_box", "reference_brain", "patch_px", "whole_patch_px", "large_px",
                  "window_px", "region_px", "tile_px", "block_px", "cell_px", "blur_um", "bootstrap", "seed",
                  "nucleus_stain", "preview_section" (brain section index), "volumes": {method: path}, "checkpoint",
                  "volume_seed", "steps", "generation": {...}, "frechet": {...}, "nuclei": {...}, "ridge": {...},
                  "gene_probe": {...}, "mean_image"},
     "methods": ["real", "generated", "shuffled", "zeroed", "ensemble_mean", "mean_image", "ridge", "real_neighbour",
                 "real_vs_real"]  (those present),
     "table": [{"method", "metric", "stain", "value", "low", "high", "n", "unit", "better", "reason"}],
     "paired": [{"metric", "stain", "control", "difference", "low", "high", "p", "n", "reason"}],
     "strata": [{"stratum", "group", "method", "metric", "stain", "value", "low", "high", "n"}],
     "ensemble": null | {"seeds", "volumes", "calibration": [{"stain", "spread", "error", "n"}]},
     "acceptance": [{"name", "value", "target", "passed"}]   (value null and passed false: could not be computed),
     "excluded": {"patches", "patches_without_transcripts", "windows", "windows_without_transcripts", ...}}

`better` is "higher", "lower", "one" (a ratio that should be 1) or "none" (a description); metrics, their units and
which way is better are listed in `tera_mind.metrics.table.METRICS` and explained in docs/evaluation.md. `low` and
`high` are the 95 % interval, null where there is none. `difference` is generated against control with the sign turned
so that positive means that generated is better; `p` is two-sided: from the same resamples, for distances of tiles from
the jackknife's Student t.

`arrays.npz`; boxes are int64 rows of brain section, y0, y1, x0, x1 in canvas px:

    "patch_boxes", "<patch metric>/<method>/<stain>"        float32 (patch,), and "patch_transcripts"
    "large_boxes", "ms_ssim/<method>/<stain>"               squares of large_px
    "patch_region"                                          label of each patch, where a region map was given
    "window_boxes", "window_counts/<method>", "window_<quantity>/<method>"   medians, NaN where there is no nucleus
    "region_boxes", "region_counts/<method>", "region_<quantity>/<method>"   the same in squares of region_px
    "nucleus_<quantity>/<method>"                           (nucleus,) area um^2, eccentricity, intensity, distance um,
                                                            transcripts; also for "real" and "real_vs_real"
    "spectrum/<method>/<stain>", "spectrum_cycles_per_um", "histogram/<method>/<stain>"
    "seam_phase/<method>/<stain>"                           gradient index of the grid at its shifts
    "gene_r/<method>", "genes"                              what the gene probe finds, by gene
    "uncertainty/<stain>", "error/<stain>"                  (patch,) of an ensemble, grey levels
    "preview_box" (y0, y1, x0, x1), "labels/<method>", "ridge_preview"      the middle of the first section
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tera_mind import __version__
from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.metrics.checks import check_volumes, reference_tissue
from tera_mind.metrics.conclude import conclude
from tera_mind.metrics.controls import fit_ridge, mean_image
from tera_mind.metrics.nuclei.segmenters import Cellpose, NucleusSettings, Scale, Segmenter, Watershed
from tera_mind.metrics.partial import PartialStore, Results
from tera_mind.metrics.plan import (
    BLUR_UM,
    CEILING,
    ENSEMBLE,
    GENERATED,
    NEIGHBOUR,
    REAL,
    VOLUME_METHODS,
    Plan,
    Reference,
    make_plan,
    tissue_tiles,
)
from tera_mind.metrics.pool import run_units
from tera_mind.metrics.regions import RegionMap
from tera_mind.metrics.scores import Measured, Resampling
from tera_mind.metrics.sources import Sources
from tera_mind.metrics.table import Evaluation
from tera_mind.metrics.tiles.features import EfficientNetLite0, FeatureExtractor
from tera_mind.metrics.tiles.inception import Inception
from tera_mind.metrics.unit import Measurer

__all__ = ["VOLUME_METHODS", "EvaluateSettings", "Evaluation", "evaluate"]

#: side and number of the windows of a section on which nuclear brightness is measured
CALIBRATION_PX, CALIBRATION_WINDOWS = 512, 16

#: reports progress: wraps an iterable of known length, yields its items
Track = Callable[[Iterable[str]], Iterable[str]]


@dataclass(frozen=True)
class EvaluateSettings:
    """How an evaluation is made; what is compared is given apart.

    window_px, region_px: sides of the squares in which nuclei are counted; patch_px: side of a patch, of which the
    scores' patches are two wide and at whose borders seams are sought (default: the volume's own); tile_px: side of the
    sampler's tiles, for seams; block_px: side of the blocks that are read at once; tiles: most tiles of the feature
    distances; bootstrap: resamples of an interval; seed: of the resampling; workers: processes; nucleus: of the
    watershed; cellpose: weights, to segment with Cellpose instead; inception: weights, for FID and sFID as well.
    """

    window_px: int = 128
    region_px: int = 1024
    patch_px: int | None = None
    tile_px: int | None = None
    block_px: int = 2048
    tiles: int = 1024
    bootstrap: int = 1000
    seed: int = 0
    workers: int = 1
    nucleus: NucleusSettings = field(default_factory=NucleusSettings)
    cellpose: Path | None = None
    inception: Path | None = None

    def __post_init__(self) -> None:
        for name in ("window_px", "region_px", "patch_px", "tile_px", "block_px", "tiles", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.bootstrap < 0 or self.seed < 0 or self.nucleus.diameter_um <= 0:
            raise InputError("bootstrap and seed must be at least 0 and the nucleus diameter above 0")

    def segmenter(self, pixel_um: float) -> Segmenter:
        if self.cellpose is not None:
            return Cellpose(self.cellpose, pixel_um, self.nucleus.diameter_um)
        return Watershed(pixel_um, self.nucleus)

    def extractors(self) -> tuple[FeatureExtractor, ...]:
        more = () if self.inception is None else (Inception(self.inception, "fid"), Inception(self.inception, "sfid"))
        return (EfficientNetLite0(), *more)


def evaluate(
    brain: Brain,
    volumes: Mapping[str, Volume],
    train_box: Box,
    settings: EvaluateSettings | None = None,
    track: Track | None = None,
    *,
    reference_brain: Brain | None = None,
    ensemble: Sequence[Volume] = (),
    regions: RegionMap | None = None,
    work: Path | None = None,
) -> Evaluation:
    """Compare volumes of one region ("generated", and as controls "shuffled", "zeroed") with the real brain.

    The region is the generated volume's box; `train_box` is where the mean image, the regression and the gene probe
    are fitted and where the real tissue of real_vs_real lies: in pixels of `reference_brain` where one is given
    (trained on one brain, tested on another), else of `brain`. `ensemble` holds the same volume from other seeds.
    Blocks that are done are kept in the folder `work` until all are, so that an interrupted call goes on. Raises
    `InputError` when volumes, brains and training box do not fit together.
    """
    settings = EvaluateSettings() if settings is None else settings
    plan, reference = plan_evaluation(brain, volumes, train_box, settings, reference_brain, ensemble)
    extractors, segmenter = settings.extractors(), settings.segmenter(brain.pixel_um)
    facts = _facts(brain, volumes, ensemble, reference, plan, settings)
    held = tempfile.TemporaryDirectory(prefix="tera-mind-evaluate-") if work is None else None
    # resampling comes after measuring: other intervals need no new measurement
    measured = {name: value for name, value in facts.items() if name not in {"bootstrap", "seed"}}
    store = PartialStore(Path(held.name) if held is not None else work or Path(), measured)
    store.prepare()
    mean = np.clip(np.rint(mean_image(reference.brain, reference.sections, reference.box)), 0, 255).astype(np.uint8)
    ridge = fit_ridge(reference.brain, reference.sections, reference.box, plan.blur_px, reference.genes)
    sources = Sources(brain, dict(volumes), tuple(ensemble), reference, mean, ridge, plan.test)
    scales = {} if plan.nucleus_stain is None else _scales(plan, sources, segmenter, plan.nucleus_stain)
    measurer = Measurer(plan, sources, segmenter, scales, extractors)
    _measure_all(measurer, store, settings.workers, track)
    found = Measured(
        plan,
        Results(store, [unit.name for unit in plan.units if unit.role == "test"]),
        Results(store, [unit.name for unit in plan.units if unit.role == "reference"]),
        Resampling(settings.bootstrap, settings.seed),
        len(reference.genes),
    )
    return conclude(found, measurer, regions, facts, keeps=held)


def plan_evaluation(
    brain: Brain,
    volumes: Mapping[str, Volume],
    train_box: Box,
    settings: EvaluateSettings,
    reference_brain: Brain | None = None,
    ensemble: Sequence[Volume] = (),
) -> tuple[Plan, Reference]:
    """Check what is to be compared, as `evaluate` does, and say what would be measured; nothing is."""
    check_volumes(brain, volumes, ensemble)
    reference = reference_tissue(brain, volumes[GENERATED], train_box, reference_brain)
    plan = make_plan(
        brain,
        volumes[GENERATED],
        reference,
        _methods(brain, volumes, ensemble),
        patch_px=settings.patch_px,
        tile_px=settings.tile_px,
        window_px=settings.window_px,
        region_px=settings.region_px,
        block_px=settings.block_px,
        tiles=settings.tiles,
        tile_sides=sorted({extractor.tile_px for extractor in settings.extractors()}),
    )
    return plan, reference


def _measure_all(measurer: Measurer, store: PartialStore, workers: int, track: Track | None) -> None:
    names = [unit.name for unit in measurer.plan.units]
    todo = [(unit.name, unit) for unit in measurer.plan.units if not store.has(unit.name)]

    def finished() -> Iterator[str]:
        waiting = {name for name, _ in todo}
        yield from (name for name in names if name not in waiting)
        yield from run_units(todo, measurer, store, workers)

    done = finished()
    for _ in names if track is None else track(names):
        next(done)
    # ends the workers
    for _ in done:
        pass


def _methods(brain: Brain, volumes: Mapping[str, Volume], ensemble: Sequence[Volume]) -> list[str]:
    given = [method for method in VOLUME_METHODS if method in volumes]
    own = [ENSEMBLE] if ensemble else []
    beside = [NEIGHBOUR] if len(brain.sections) > 1 else []
    return [REAL, *given, *own, "mean_image", "ridge", *beside, CEILING]


def _scales(plan: Plan, sources: Sources, segmenter: Segmenter, stain: int) -> dict[tuple[str, int], Scale]:
    """Nuclear brightness of the real image of every section, from evenly spread windows of its tissue."""
    scales: dict[tuple[str, int], Scale] = {}
    same = sources.reference.brain.fingerprint == sources.brain.fingerprint
    for role, brain, sections, box in (
        ("test", sources.brain, plan.sections, plan.test),
        ("reference", sources.reference.brain, sources.reference.sections, plan.ceiling),
    ):
        for section in sections:
            if role == "reference" and same:
                scales[role, section] = scales["test", section]
                continue
            windows = tissue_tiles(brain, section, box, CALIBRATION_PX, CALIBRATION_PX // 2, CALIBRATION_WINDOWS)
            boxes = [Box(*row) for row in windows.tolist()] or [box]
            scales[role, section] = segmenter.calibrate([brain.image(b, [section])[stain, 0] for b in boxes])
    return scales


def _facts(
    brain: Brain,
    volumes: Mapping[str, Volume],
    ensemble: Sequence[Volume],
    reference: Reference,
    plan: Plan,
    settings: EvaluateSettings,
) -> dict[str, Any]:
    """What the outcome depends on: it tells one evaluation from another, and goes into `metrics.json`."""
    generated = volumes[GENERATED].attributes
    boxes = {"test_box": plan.test, "train_box": reference.box, "ceiling_box": plan.ceiling}
    return {
        "brain": str(brain.path),
        "brain_fingerprint": brain.fingerprint,
        "reference_brain": str(reference.brain.path),
        "reference_fingerprint": reference.brain.fingerprint,
        "pixel_um": plan.pixel_um,
        "stains": list(plan.stains),
        "sections": list(plan.sections),
        "section_names": [brain.sections[section].name for section in plan.sections],
        **{name: [box.y0, box.y1, box.x0, box.x1] for name, box in boxes.items()},
        "patch_px": plan.patch_px,
        "whole_patch_px": plan.whole_px,
        "large_px": plan.large_px,
        "window_px": plan.window_px,
        "region_px": plan.region_px,
        "tile_px": plan.tile_px,
        "block_px": plan.block_px,
        "cell_px": plan.cell_patches * plan.whole_px,
        "blur_um": BLUR_UM,
        "bootstrap": settings.bootstrap,
        "seed": settings.seed,
        "nucleus_stain": None if plan.nucleus_stain is None else plan.stains[plan.nucleus_stain],
        "preview_section": plan.sections[0],
        "volumes": {method: str(volume.path) for method, volume in volumes.items()},
        "ensemble": [str(volume.path) for volume in ensemble],
        "written": [_written(volume) for volume in (*volumes.values(), *ensemble)],
        "checkpoint": generated.checkpoint,
        "volume_seed": generated.seed,
        "steps": generated.steps,
        "generation": generated.settings,
        "frechet": {
            "features": [extractor.name for extractor in settings.extractors()],
            "most_tiles": settings.tiles,
            "inception": None if settings.inception is None else _sha256(settings.inception),
        },
        "nuclei": settings.segmenter(plan.pixel_um).settings(),
        "software": __version__,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _written(volume: Volume) -> int:
    """When a volume was written: another one in its place is another evaluation."""
    return (volume.path / "zarr.json").stat().st_mtime_ns
