"""A generated volume against the real brain, with its controls: what `tera-mind evaluate` and the demo call.

`metrics.json` (written by `Evaluation.write`, schema version 1; numbers are floats, an uncomputable one is null):

    {"format": "metrics", "version": 1,
     "settings": {"brain", "pixel_um", "stains", "sections", "test_box": [y0, y1, x0, x1], "train_box",
                  "ceiling_box", "patch_px", "whole_patch_px", "window_px", "blur_um", "bootstrap", "seed",
                  "nucleus_stain", "preview_section" (brain section index), "volumes": {method: path}, "checkpoint",
                  "frechet": {...}, "nuclei": {...}, "ridge": {...}},
     "methods": ["real", "generated", "shuffled", "zeroed", "mean_image", "ridge", "real_vs_real"]  (those present),
     "table": [{"method", "metric", "stain", "value", "low", "high", "n", "unit", "better", "reason"}],
     "paired": [{"metric", "stain", "control", "difference", "low", "high", "n", "reason"}],
     "acceptance": [{"name", "value", "target", "passed"}]   (value null and passed false: could not be computed),
     "excluded": {"patches", "patches_without_transcripts", "windows", "windows_without_transcripts"}}

`better` is "higher", "lower", "one" (a ratio that should be 1) or "none" (a description). `low` and `high` are the
95 % bootstrap interval, null where there is none. `difference` is generated against control with the sign turned so
that positive means that generated is better. Metrics, by their names in the table:

    psnr [dB], ssim, psnr_blur [dB], ssim_blur, pearson_blur         a stain; mean over whole patches
    nuclei_count, nuclei_count_r, nuclei_count_ratio, nuclei_count_error (a window), nuclei_count_wasserstein,
    nucleus_area_median_um2 [um^2], nucleus_area_ratio, nucleus_area_r, nucleus_area_wasserstein [um^2]   DAPI
    frechet                                                          a stain; real_vs_real is its ceiling
    seam_index, seam_null                                            a stain; 1 = patch borders look like the rest

`arrays.npz`:

    "psnr/<method>/<stain>", ... (every patch metric)   float32 (patch,)      same order as "patch_boxes"
    "patch_boxes", "window_boxes"   int64 (n, 5)        brain section, y0, y1, x0, x1 in canvas px; kept ones only
    "window_counts/<method>"        int64 (window,)     also for "real"
    "window_area_um2/<method>"      float64 (window,)   median nucleus area, NaN where there is no nucleus
    "nucleus_area_um2/<method>"     float64 (nucleus,)  also for "real" and "real_vs_real" (the training side)
    "seam_phase/<method>/<stain>"   float64 (patch_px,) index of the grid shifted by 0, 1, ... px; also for "real"
    "preview_box"                   int64 (4,)          y0, y1, x0, x1 in canvas px, at most 1024 px a side
    "labels/<method>"               int32 (y, x)        nuclei in the preview box, 0 = none; also for "real"
    "ridge_preview"                 uint8 (stain, y, x) the ridge regression's image in the preview box

Nucleus arrays are absent where the brain has no DAPI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box
from tera_mind.metrics import frechet, scores
from tera_mind.metrics.controls import Ridge, fit_ridge, mean_image, predict_ridge
from tera_mind.metrics.fidelity import SSIM_WINDOW_PX
from tera_mind.metrics.measure import Layout, Measured, SectionView, measure, measure_ceiling, merge, view_section
from tera_mind.metrics.nuclei import NucleusSettings
from tera_mind.metrics.table import PATCH_METRICS, Evaluation, Row

__all__ = ["VOLUME_METHODS", "EvaluateSettings", "Evaluation", "evaluate"]

#: methods that come as volumes, in the order of tables; "generated" must be there
VOLUME_METHODS = ("generated", "shuffled", "zeroed")
BLUR_UM = 2.0
#: most pixels along a side of the preview
PREVIEW_PX = 1024

#: reports progress: wraps an iterable of known length, yields its items
Track = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class EvaluateSettings:
    """How an evaluation is made; what is compared is given apart.

    window_px: side of the windows in which nuclei are counted; patch_px: side of a patch, of which the scores' patches
    are two wide and at whose borders seams are sought (default: the volume's own); bootstrap: resamples of an
    interval; seed: of the resampling; workers: methods measured at once; nucleus: of the segmentation.
    """

    window_px: int = 128
    patch_px: int | None = None
    bootstrap: int = 1000
    seed: int = 0
    workers: int = 1
    nucleus: NucleusSettings = field(default_factory=NucleusSettings)

    def __post_init__(self) -> None:
        for name in ("window_px", "patch_px", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.bootstrap < 0 or self.seed < 0 or self.nucleus.diameter_um <= 0:
            raise InputError("bootstrap and seed must be at least 0 and the nucleus diameter above 0")


def evaluate(
    brain: Brain,
    volumes: Mapping[str, Volume],
    train_box: Box,
    settings: EvaluateSettings | None = None,
    track: Track | None = None,
) -> Evaluation:
    """Compare volumes of one region ("generated", and as controls "shuffled", "zeroed") with the real brain.

    The region is the generated volume's box; `train_box` (canvas pixels) is where the mean image and the regression
    are fitted and where the real tissue of real_vs_real lies. One section is in memory at a time. Raises `InputError`
    when the volumes, the brain and the training box do not fit together.
    """
    settings = EvaluateSettings() if settings is None else settings
    test = check_volumes(brain, volumes, train_box)
    layout = _layout(brain, volumes["generated"], train_box, test, settings)
    sections = volumes["generated"].attributes.sections
    mean = np.clip(np.rint(mean_image(brain, sections, train_box)), 0, 255).astype(np.uint8)
    ridge = fit_ridge(brain, sections, train_box, layout.blur_px)
    run = _Run(brain, volumes, layout, mean, ridge, settings)
    views, parts = run.all_sections(sections, track)
    return run.conclude(sections, train_box, views, {method: merge(found) for method, found in parts.items()})


def check_volumes(brain: Brain, volumes: Mapping[str, Volume], train_box: Box) -> Box:
    """The box on which all volumes can be compared with the brain, from a corner of the patch grid on."""
    unknown = sorted(set(volumes) - set(VOLUME_METHODS))
    if unknown or "generated" not in volumes:
        raise InputError(
            f"expected a 'generated' volume and at most {VOLUME_METHODS[1:]} beside it, got {list(volumes)}"
        )
    generated = volumes["generated"].attributes
    for method, volume in volumes.items():
        own = volume.attributes
        for what, expected, found in (
            ("brain", brain.fingerprint, own.brain_fingerprint),
            ("stains", brain.stains, own.stains),
            ("box", generated.box, own.box),
            ("sections", generated.sections, own.sections),
        ):
            if expected != found:
                raise InputError(
                    f"the {method} volume {volume.path} should have {what} {expected}, has {found}: generate it from "
                    "the same brain and region"
                )
        if abs(own.pixel_um / brain.pixel_um - 1) > 1e-3:
            raise InputError(
                f"the {method} volume {volume.path} has pixels of {own.pixel_um:g} um, the brain {brain.path} of "
                f"{brain.pixel_um:g} um: generate it from this brain"
            )
    missing = [section for section in generated.sections if not 0 <= section < len(brain.sections)]
    if missing:
        raise InputError(f"the volume holds sections {missing}, the brain only 0 to {len(brain.sections) - 1}")
    test = generated.box.intersect(brain.canvas)
    if test.is_empty:
        raise InputError(f"the volume's box {generated.box} and the brain's canvas {brain.canvas} do not overlap")
    if train_box.is_empty or not brain.canvas.contains(train_box):
        raise InputError(f"the training region {train_box} is empty or leaves the brain's canvas {brain.canvas}")
    if not test.intersect(train_box).is_empty:
        raise InputError(
            f"the training region {train_box} overlaps the generated box {test}, so scores there would be of tissue "
            "that was seen: name the region that was trained on with --train-region, or generate another"
        )
    return test


def _layout(brain: Brain, generated: Volume, train_box: Box, test: Box, settings: EvaluateSettings) -> Layout:
    patch_px = settings.patch_px or generated.attributes.patch_px
    origin = generated.attributes.box
    # where the canvas cuts the volume, start at the next patch border
    y0, x0 = (test.y0 + (origin.y0 - test.y0) % patch_px, test.x0 + (origin.x0 - test.x0) % patch_px)
    if min(test.y1 - y0, test.x1 - x0) < 2 * patch_px or 2 * patch_px < SSIM_WINDOW_PX:
        raise InputError(
            f"the common box {test} must hold a whole patch of {2 * patch_px} px, and that at least {SSIM_WINDOW_PX} px"
        )
    test = Box(y0, test.y1, x0, test.x1)
    height, width = min(test.height, train_box.height), min(test.width, train_box.width)
    ceiling = _centred(train_box, height, width)
    names = [stain.casefold() for stain in brain.stains]
    return Layout(
        stains=brain.stains,
        pixel_um=brain.pixel_um,
        blur_px=BLUR_UM / brain.pixel_um,
        test=test,
        ceiling=ceiling,
        preview=_centred(test, min(PREVIEW_PX, test.height), min(PREVIEW_PX, test.width)),
        patch_px=patch_px,
        window_px=settings.window_px,
        nucleus_stain=names.index("dapi") if "dapi" in names else None,
        nucleus=settings.nucleus,
        tiles=max(1, frechet.MAX_TILES // len(generated.attributes.sections)),
    )


def _centred(box: Box, height: int, width: int) -> Box:
    y0, x0 = box.y0 + (box.height - height) // 2, box.x0 + (box.width - width) // 2
    return Box(y0, y0 + height, x0, x0 + width)


@dataclass(frozen=True)
class _Run:
    """What does not change during one evaluation."""

    brain: Brain
    volumes: Mapping[str, Volume]
    layout: Layout
    mean: NDArray[np.uint8]
    ridge: Ridge
    settings: EvaluateSettings

    @property
    def methods(self) -> list[str]:
        given = [method for method in VOLUME_METHODS if method in self.volumes]
        return [scores.REAL, *given, "mean_image", "ridge", scores.CEILING]

    @property
    def controls(self) -> list[str]:
        return [method for method in self.methods if method not in {scores.REAL, "generated", scores.CEILING}]

    def image(self, method: str, view: SectionView) -> NDArray[np.uint8]:
        """A method's image (stain, y, x) of a section, in the test box (in the ceiling box for real_vs_real)."""
        if method == scores.REAL:
            return view.real
        if method == scores.CEILING:
            return self.brain.image(self.layout.ceiling, [view.section])[:, 0]
        if method == "mean_image":
            return np.broadcast_to(self.mean[:, None, None], view.real.shape)
        if method == "ridge":
            return predict_ridge(self.brain, view.section, self.layout.test, self.ridge)
        return self.volumes[method].image(self.layout.test, [view.section])[:, 0]

    def measure(self, method: str, view: SectionView, preview: bool) -> Measured:
        image = self.image(method, view)
        if method == scores.CEILING:
            return measure_ceiling(image, view, self.layout)
        return measure(image, view, self.layout, real=method == scores.REAL, preview=preview)

    def all_sections(
        self, sections: tuple[int, ...], track: Track | None
    ) -> tuple[list[SectionView], dict[str, list[Measured]]]:
        """Measure every method on every section; methods run side by side, results keep their order."""
        views: list[SectionView] = []
        parts: dict[str, list[Measured]] = {method: [] for method in self.methods}

        def results() -> Iterator[tuple[str, Measured]]:
            with ThreadPoolExecutor(self.settings.workers) as pool:
                for number, section in enumerate(sections):
                    view = view_section(self.brain, section, self.layout)
                    # a view's image is needed only while its section is measured
                    views.append(_without_image(view))
                    jobs = [(method, pool.submit(self.measure, method, view, number == 0)) for method in self.methods]
                    yield from ((method, job.result()) for method, job in jobs)

        steps: Iterable[int] = range(len(sections) * len(self.methods))
        # the results set the pace: one step of the bar is one method on one section
        found = results()
        for _ in steps if track is None else track(steps):
            method, result = next(found)
            parts[method].append(result)
        return views, parts

    def conclude(
        self, sections: tuple[int, ...], train_box: Box, views: list[SectionView], measured: dict[str, Measured]
    ) -> Evaluation:
        """All figures and arrays from the measurements."""
        draw = scores.Resampling(self.settings.bootstrap, self.settings.seed)
        stains, layout = self.layout.stains, self.layout
        kept = np.concatenate([view.window_kept for view in views])
        images = [method for method in self.methods if method not in {scores.REAL, scores.CEILING}]
        table = [row for method in images for row in scores.patch_rows(method, measured[method], stains, draw)]
        table += self._nucleus_table(measured, kept, draw)
        seams = scores.seam_indices(measured, stains, draw)
        table += [row for (method, stain), index in seams.items() for row in scores.seam_rows(method, stain, index)]
        table += scores.frechet_rows(measured, stains)
        nucleus_stain = None if layout.nucleus_stain is None else stains[layout.nucleus_stain]
        nuclei = None if nucleus_stain is None else (nucleus_stain, kept)
        paired = scores.paired_rows(measured, self.controls, stains, nuclei, draw)
        arrays = {f"seam_phase/{method}/{stain}": index.phases for (method, stain), index in seams.items()}
        arrays |= self._arrays(views, measured, kept)
        excluded = {
            "patches": sum(len(view.patches) for view in views),
            "patches_without_transcripts": sum(view.patches_excluded for view in views),
            "windows": int(kept.sum()),
            "windows_without_transcripts": sum(view.windows_excluded for view in views),
        }
        return Evaluation(
            settings=self._settings(sections, train_box),
            methods=self.methods,
            table=table,
            paired=paired,
            acceptance=scores.acceptance(table, paired, stains, nucleus_stain or "DAPI"),
            excluded=excluded,
            arrays=arrays,
        )

    def _nucleus_table(
        self, measured: dict[str, Measured], kept: NDArray[np.bool_], draw: scores.Resampling
    ) -> list[Row]:
        real, ceiling = measured[scores.REAL].nuclei, measured[scores.CEILING].nuclei
        if real is None or ceiling is None or self.layout.nucleus_stain is None:
            return []
        stain, rows = self.layout.stains[self.layout.nucleus_stain], []
        for method in self.methods:
            found = measured[method].nuclei
            if found is not None and method != scores.CEILING:
                rows += scores.nucleus_rows(method, found, real, kept, stain=stain, draw=draw)
        share = (self.layout.ceiling.height * self.layout.ceiling.width) / (
            self.layout.test.height * self.layout.test.width
        )
        return rows + scores.ceiling_nucleus_rows(ceiling, real, kept, area_share=share, stain=stain, draw=draw)

    def _arrays(
        self, views: list[SectionView], measured: dict[str, Measured], kept: NDArray[np.bool_]
    ) -> dict[str, NDArray[Any]]:
        layout = self.layout
        origin = layout.test
        patches = [(view.section, box) for view in views for box in view.patches]
        windows = [
            (view.section, box)
            for view in views
            for box, whole in zip(view.windows, view.window_kept, strict=True)
            if whole
        ]
        arrays: dict[str, NDArray[Any]] = {
            name: np.array(
                [(s, b.y0 + origin.y0, b.y1 + origin.y0, b.x0 + origin.x0, b.x1 + origin.x0) for s, b in boxes],
                np.int64,
            ).reshape(-1, 5)
            for name, boxes in (("patch_boxes", patches), ("window_boxes", windows))
        }
        preview = layout.preview
        arrays["preview_box"] = np.array([preview.y0, preview.y1, preview.x0, preview.x1], np.int64)
        ridge = measured["ridge"].preview_image
        assert ridge is not None
        arrays["ridge_preview"] = ridge
        for method, found in measured.items():
            for (metric, stain), values in found.scores.items():
                arrays[f"{metric}/{method}/{stain}"] = values.astype(np.float32)
            if found.nuclei is not None:
                arrays[f"nucleus_area_um2/{method}"] = found.nuclei.area_um2
                if method != scores.CEILING:
                    arrays[f"window_counts/{method}"] = found.nuclei.counts[kept]
                    arrays[f"window_area_um2/{method}"] = found.nuclei.areas[kept]
            if found.preview_labels is not None:
                arrays[f"labels/{method}"] = found.preview_labels
        return arrays

    def _settings(self, sections: tuple[int, ...], train_box: Box) -> dict[str, Any]:
        layout, generated = self.layout, self.volumes["generated"].attributes
        boxes = {"test_box": layout.test, "train_box": train_box, "ceiling_box": layout.ceiling}
        return {
            "brain": str(self.brain.path),
            "pixel_um": layout.pixel_um,
            "stains": list(layout.stains),
            "sections": list(sections),
            **{name: [box.y0, box.y1, box.x0, box.x1] for name, box in boxes.items()},
            "patch_px": layout.patch_px,
            "whole_patch_px": layout.whole_px,
            "window_px": layout.window_px,
            "blur_um": BLUR_UM,
            "bootstrap": self.settings.bootstrap,
            "seed": self.settings.seed,
            "nucleus_stain": None if layout.nucleus_stain is None else layout.stains[layout.nucleus_stain],
            "preview_section": sections[0],
            "volumes": {method: str(volume.path) for method, volume in self.volumes.items()},
            "checkpoint": generated.checkpoint,
            "patch_metrics": list(PATCH_METRICS),
            "frechet": {"network": "efficientnet-lite0", "tile_px": frechet.TILE_PX, "stride_px": frechet.STRIDE_PX},
            "nuclei": asdict(layout.nucleus),
            "ridge": {
                "bin_px": self.ridge.bin_px,
                "components": int(self.ridge.axes.shape[1]),
                "penalty": self.ridge.penalty,
                "held_out_r2": list(self.ridge.held_out_r2),
                "bins": self.ridge.bins,
            },
            "mean_image": [int(value) for value in self.mean],
        }


def _without_image(view: SectionView) -> SectionView:
    values = {name: getattr(view, name) for name in view.__dataclass_fields__}
    return SectionView(**(values | {"real": view.real[:, :0, :0]}))
