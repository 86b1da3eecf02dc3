"""`tera-mind verify`: golden files of the published model in, one row an array out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

_DESCRIPTION = """\
Check that this model is the published one: load the weights of a golden file, compute its arrays again, and compare.

Rows: the schedule, the gene branch, both paths of the network (1e-4), and a region after the first (1e-4) and the
last (1e-3) sampling step. Exit code 0 when every array is within its tolerance, else 1."""

_EPILOG = """\
example:
  tera-mind verify golden/golden_1slice.npz golden/golden_4slices.npz"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tera-mind verify",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE.npz", help="golden arrays of the reference implementation"
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Print name, largest absolute difference, tolerance and verdict of each array; 1 if one failed."""
    options = build_parser().parse_args(arguments)
    from tera_mind.sampling.verify import TOLERANCES, Golden, verify

    width = max(map(len, TOLERANCES))
    failed = 0
    for path in options.files:
        golden = Golden.read(path)
        print(f"{path}\n{'array':<{width}}  {'max difference':>14}  {'tolerance':>9}", flush=True)
        for row in verify(golden):
            verdict = "ok" if row.ok else "FAIL"
            print(f"{row.name:<{width}}  {row.difference:>14.2e}  {row.tolerance:>9.0e}  {verdict}", flush=True)
            failed += not row.ok
    print("every array is within its tolerance" if not failed else f"{failed} arrays are outside their tolerance")
    return 1 if failed else 0
