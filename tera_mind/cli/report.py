"""`tera-mind report`: an evaluation, its tissue and its training log as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind report",
        description=(
            "Write one self-contained HTML file that shows real tissue beside generated tissue at several zooms, what "
            "the model gets right and wrong beside its controls, nuclei, texture, genes read back from the picture, "
            "seams, sections, several seeds, every score with its interval, the loss curve and all settings. It needs "
            "no network; every generated picture is marked SYNTHETIC. The figures are also written as PNG into "
            "figures/ beside it."
        ),
        epilog=(
            "example:\n  tera-mind report --evaluation run/evaluation --brain brain.zarr \\\n"
            "      --generated generated.zarr --shuffled shuffled.zarr --log run/metrics.csv --out run/report.html"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--evaluation", type=Path, required=True, metavar="DIR", help="folder that `tera-mind evaluate` wrote"
    )
    parser.add_argument("--brain", type=Path, required=True, metavar="ZARR", help="brain store with the real tissue")
    parser.add_argument("--generated", type=Path, required=True, metavar="ZARR", help="generated volume")
    parser.add_argument("--shuffled", type=Path, metavar="ZARR", help="volume generated from shuffled genes")
    parser.add_argument("--zeroed", type=Path, metavar="ZARR", help="volume generated from genes set to zero")
    parser.add_argument("--log", type=Path, metavar="CSV", help="metrics.csv of the training, for the loss curve")
    parser.add_argument("--title", default="Genes paint tissue", help="headline (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="HTML", help="file to write (default: %(default)s)"
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Write the report and print where it is."""
    options = build_parser().parse_args(arguments)
    # zarr and matplotlib take seconds to import: not before the arguments are known to be right
    from tera_mind.formats.brain import Brain
    from tera_mind.formats.volume import Volume
    from tera_mind.report.html import write_report

    paths = {"generated": options.generated, "shuffled": options.shuffled, "zeroed": options.zeroed}
    volumes = {method: Volume.open(path) for method, path in paths.items() if path is not None}
    out = write_report(
        options.out, options.evaluation, Brain.open(options.brain), volumes, options.log, title=options.title
    )
    print(f"report: {out}")
    return 0
