"""`tera-mind evaluate`: compare generated volumes with the real brain and with controls."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tera_mind.metrics.evaluate import Evaluation

_DESCRIPTION = """\
Measure how close a generated volume comes to the real image of the same tissue, in the region that the volume covers.
Every score stands beside controls: genes shuffled or zeroed (volumes you give), the mean image, a ridge regression
from genes to the blurred stain, and real tissue of the training region against real tissue here, which is as close
as two pieces of this brain come. Writes metrics.json and arrays.npz; `tera-mind report` draws them."""

_EPILOG = """\
example:
  tera-mind evaluate --brain brain.zarr --generated generated.zarr --shuffled shuffled.zarr --zeroed zeroed.zarr \\
      --train-region ':,:60%' --out evaluation"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind evaluate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--brain", type=Path, required=True, help="brain store whose genes were painted")
    parser.add_argument("--generated", type=Path, required=True, help="volume generated from its genes")
    parser.add_argument("--shuffled", type=Path, help="the same region from genes shuffled between patches")
    parser.add_argument("--zeroed", type=Path, help="the same region from genes set to zero")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json and arrays.npz")
    parser.add_argument(
        "--train-region",
        default=":,:60%",
        help="region y0:y1,x0:x1 that was trained on, in pixels or percent (default %(default)s)",
    )
    parser.add_argument(
        "--window-px", type=int, default=128, help="side of the windows in which nuclei are counted (default 128)"
    )
    parser.add_argument(
        "--patch-px", type=int, help="side of a patch: scores use squares of two, seams its borders (default: volume's)"
    )
    parser.add_argument(
        "--nucleus-um", type=float, default=8.0, help="typical nucleus diameter in um (default %(default)s)"
    )
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of each 95%% interval (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling (default 0)")
    parser.add_argument("--workers", type=int, default=1, help="methods measured at once, in threads (default 1)")
    return parser


def run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)

    from tera_mind.cli.progress import track
    from tera_mind.formats.brain import Brain
    from tera_mind.formats.volume import Volume
    from tera_mind.geometry import Box
    from tera_mind.metrics.evaluate import VOLUME_METHODS, EvaluateSettings, evaluate
    from tera_mind.metrics.nuclei import NucleusSettings

    settings = EvaluateSettings(
        window_px=options.window_px,
        patch_px=options.patch_px,
        bootstrap=options.bootstrap,
        seed=options.seed,
        workers=options.workers,
        nucleus=NucleusSettings(diameter_um=options.nucleus_um),
    )
    brain = Brain.open(options.brain)
    paths = {method: getattr(options, method) for method in VOLUME_METHODS}
    volumes = {method: Volume.open(path) for method, path in paths.items() if path is not None}
    train_box = Box.parse(options.train_region, brain.canvas)
    evaluation = evaluate(brain, volumes, train_box, settings, track=partial(track, description="evaluate"))
    path = evaluation.write(options.out)
    print(summary(evaluation))
    print(f"metrics: {path}")
    return 0


def summary(evaluation: Evaluation) -> str:
    """The table of methods by metrics, a block a stain, and the acceptance lines, as plain text."""
    lines = []
    methods = evaluation.methods
    for stain in evaluation.settings["stains"]:
        metrics = list(dict.fromkeys(row.metric for row in evaluation.table if row.stain == stain))
        lines.append(f"{stain:<26}" + "".join(f"{method:>14}" for method in methods))
        for metric in metrics:
            rows = [evaluation.row(method, metric, stain) for method in methods]
            values = ["" if row is None else "-" if row.value is None else f"{row.value:.4g}" for row in rows]
            lines.append(f"  {metric:<24}" + "".join(f"{value:>14}" for value in values))
    lines.append("acceptance")
    for line in evaluation.acceptance:
        value = "-" if line.value is None else f"{line.value:.4g}"
        lines.append(f"  {'ok  ' if line.passed else 'FAIL'} {line.name}: {value} ({line.target})")
    return "\n".join(lines)
