"""`tera-mind evaluate`: compare generated volumes with the real brain and with controls."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tera_mind.errors import InputError

if TYPE_CHECKING:
    from tera_mind.metrics.evaluate import Evaluation
    from tera_mind.metrics.plan import Plan

_DESCRIPTION = """\
Measure how close a generated volume comes to the real image of the same tissue, in the region that the volume covers.
Every score stands beside controls: genes shuffled or zeroed (volumes you give), the mean image, a ridge regression
from genes to the blurred stain, the neighbouring real section, and real tissue of the training region against real
tissue here, which is as close as two pieces of this brain come. Works block by block, in as many processes as you
like and in bounded memory; an interrupted evaluation goes on where it was. Writes metrics.json and arrays.npz;
`tera-mind report` draws them, `tera-mind compare` sets several side by side."""

_EPILOG = """\
example:
  tera-mind evaluate --brain brain.zarr --generated generated.zarr --shuffled shuffled.zarr --zeroed zeroed.zarr \\
      --train-region ':,:60%' --out evaluation"""

#: core-seconds a megapixel, stain, section and image: for --dry-run (benchmarks/evaluate.py)
SECONDS_PER_MEGAPIXEL = 0.7
#: seconds for what does not depend on the region's size: fitting the controls, distances, intervals
SECONDS = 40


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind evaluate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--brain", type=Path, required=True, help="brain store whose genes were painted")
    add("--generated", type=Path, required=True, help="volume generated from its genes")
    add("--shuffled", type=Path, help="the same region from genes shuffled between patches")
    add("--zeroed", type=Path, help="the same region from genes set to zero")
    add("--ensemble", type=Path, nargs="+", default=[], help="the generated volume from other seeds")
    add("--out", type=Path, required=True, help="folder for metrics.json and arrays.npz")
    add(
        "--train-region",
        default=":,:60%",
        help="region y0:y1,x0:x1 that was trained on, in pixels or percent (default %(default)s)",
    )
    add("--train-brain", type=Path, help="brain store that was trained on, where it is another one")
    add(
        "--regions",
        type=Path,
        help="region map (.npy, .tif, or the truth folder of a simulated brain): figures region by region",
    )
    add("--window-px", type=int, default=128, help="side of the windows in which nuclei are counted (default 128)")
    add("--region-px", type=int, default=1024, help="side of larger such squares, as published (default 1024)")
    add(
        "--patch-px", type=int, help="side of a patch: scores use squares of two, seams its borders (default: volume's)"
    )
    add("--tile-px", type=int, help="side of the sampler's tiles: seams are sought at their borders as well")
    add("--block-px", type=int, default=2048, help="side of the blocks that are read at once (default 2048)")
    add("--tiles", type=int, default=1024, help="most tiles of the feature distances (default %(default)s)")
    add("--nucleus-um", type=float, default=8.0, help="typical nucleus diameter in um (default %(default)s)")
    add("--cellpose", type=Path, help="weights of a Cellpose 3 model: segment with it (extra `cellpose`)")
    add("--inception", type=Path, help="Inception weights (pt_inception-2015-12-05): FID and sFID as well")
    add("--bootstrap", type=int, default=1000, help="resamples of each 95%% interval (default 1000)")
    add("--seed", type=int, default=0, help="seed of the resampling (default 0)")
    add("--workers", type=int, default=0, help="processes; about 1 GB each (default: one a core)")
    add("--dry-run", action="store_true", help="check everything and say what would be measured")
    return parser


def run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)

    from tera_mind.cli.progress import track
    from tera_mind.formats.brain import Brain
    from tera_mind.formats.volume import Volume
    from tera_mind.geometry import Box
    from tera_mind.metrics.evaluate import VOLUME_METHODS, EvaluateSettings, evaluate, plan_evaluation
    from tera_mind.metrics.nuclei.segmenters import NucleusSettings
    from tera_mind.metrics.regions import RegionMap

    if options.workers < 0:
        raise InputError(f"--workers must be at least 1, or 0 for one a core, got {options.workers}")
    settings = EvaluateSettings(
        window_px=options.window_px,
        region_px=options.region_px,
        patch_px=options.patch_px,
        tile_px=options.tile_px,
        block_px=options.block_px,
        tiles=options.tiles,
        bootstrap=options.bootstrap,
        seed=options.seed,
        workers=options.workers or len(os.sched_getaffinity(0)),
        nucleus=NucleusSettings(diameter_um=options.nucleus_um),
        cellpose=options.cellpose,
        inception=options.inception,
    )
    brain = Brain.open(options.brain)
    paths = {method: getattr(options, method) for method in VOLUME_METHODS}
    volumes = {method: Volume.open(path) for method, path in paths.items() if path is not None}
    ensemble = [Volume.open(path) for path in options.ensemble]
    other = None if options.train_brain is None else Brain.open(options.train_brain)
    regions = None if options.regions is None else RegionMap.open(options.regions, brain)
    train_box = Box.parse(options.train_region, (brain if other is None else other).canvas)
    plan, _ = plan_evaluation(brain, volumes, train_box, settings, other, ensemble)
    print(outline(plan, settings.workers), flush=True)
    if options.dry_run:
        print("dry run: nothing was measured")
        return 0
    evaluation = evaluate(
        brain,
        volumes,
        train_box,
        settings,
        track=partial(track, description="evaluate"),
        reference_brain=other,
        ensemble=ensemble,
        regions=regions,
        work=options.out / "blocks",
    )
    path = evaluation.write(options.out)
    if ensemble:
        write_uncertainty(evaluation, options.out / "uncertainty.zarr")
    else:  # one of an earlier evaluation would be taken for this one's
        shutil.rmtree(options.out / "uncertainty.zarr", ignore_errors=True)
    shutil.rmtree(options.out / "blocks", ignore_errors=True)
    print(summary(evaluation))
    print(f"metrics: {path}")
    return 0


def outline(plan: Plan, workers: int) -> str:
    """What will be measured, and about how long it takes."""
    images = len(plan.images) * len(plan.stains)
    megapixels = sum(unit.block.height * unit.block.width for unit in plan.units) / 1e6
    minutes = (SECONDS + SECONDS_PER_MEGAPIXEL * megapixels * images / workers) / 60
    return (
        f"{len(plan.methods)} methods, {len(plan.stains)} stains, sections {', '.join(map(str, plan.sections))} of box "
        f"{plan.test}: {megapixels:.1f} megapixels in {len(plan.units)} blocks, {workers} worker(s), about "
        f"{minutes:.1f} minutes"
    )


def write_uncertainty(evaluation: Evaluation, path: Path) -> None:
    """The ensemble's spread a patch as a map, a channel a stain: a layer for `tera-mind view`."""
    from tera_mind.formats.maps import Map, MapAttributes
    from tera_mind.geometry import Box

    settings = evaluation.settings
    box, step = Box(*settings["test_box"]), settings["whole_patch_px"]
    places = evaluation.arrays["patch_boxes"]
    values = np.full(
        (len(settings["stains"]), len(settings["sections"]), -(-box.height // step), -(-box.width // step)), np.nan
    )
    section = np.array([settings["sections"].index(number) for number in places[:, 0].tolist()], np.int64)
    for index, stain in enumerate(settings["stains"]):
        rows, columns = (places[:, 1] - box.y0) // step, (places[:, 3] - box.x0) // step
        values[index, section, rows, columns] = evaluation.arrays[f"uncertainty/{stain}"]
    high = float(np.nanmax(values, initial=0.0))
    attributes = MapAttributes(
        name="uncertainty",
        unit="grey levels",
        channels=tuple(settings["stains"]),
        low=0.0,
        high=max(high, 1e-6),
        box=box,
        sections=tuple(settings["sections"]),
        step_px=step,
        pixel_um=settings["pixel_um"],
    )
    Map.write(path, values.astype(np.float32), attributes)


#: what the terminal shows of the table; all of it is in metrics.json and in the report
HEADLINES = (
    *("psnr", "ssim", "ms_ssim", "pearson_blur", "nuclei_count_r", "nuclei_count_ratio", "nuclei_f1"),
    *("nucleus_area_ratio", "nucleus_area_ks", "frechet", "kernel", "fid", "sfid", "spectrum_distance"),
    *("seam_index", "seam_step", "seam_spectrum", "tile_seam_step", "z_correlation", "gene_r", "gene_recovery"),
)


def summary(evaluation: Evaluation) -> str:
    """The headline metrics of all methods, a block a stain, and the acceptance lines, as plain text."""
    lines = []
    methods = evaluation.methods
    for stain in (*evaluation.settings["stains"], ""):
        present = {row.metric for row in evaluation.table if row.stain == stain and row.value is not None}
        metrics = [metric for metric in HEADLINES if metric in present]
        if metrics:
            lines.append(f"{stain or 'genes from the image':<22}" + "".join(f"{method:>15}" for method in methods))
        for metric in metrics:
            rows = [evaluation.row(method, metric, stain) for method in methods]
            values = ["" if row is None else "-" if row.value is None else f"{row.value:.4g}" for row in rows]
            lines.append(f"  {metric:<20}" + "".join(f"{value:>15}" for value in values))
    lines.append("acceptance")
    for line in evaluation.acceptance:
        value = "-" if line.value is None else f"{line.value:.4g}"
        lines.append(f"  {'ok  ' if line.passed else 'FAIL'} {line.name}: {value} ({line.target})")
    return "\n".join(lines)
