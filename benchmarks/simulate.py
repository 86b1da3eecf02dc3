"""What the virtual brain costs: megapixels and transcripts a second on one core, and memory that stays flat.

Windows of whole sections are computed in one process, at the instrument's pixel size and at coarser ones, in tissue and
outside it. Rates are a second of processor time, so that other work on the machine counts little. Peak memory is
measured in a fresh process for sections of growing size; of the largest, a whole one of
73,728 x 106,496 px, some windows are computed. There is no rival: nothing public makes such brains.

    python benchmarks/simulate.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tera_mind.geometry import Box
from tera_mind.simulate.brains import Settings
from tera_mind.simulate.windows import VirtualBrain

SIDE = 2048
#: case: settings, side of a window in pixels, regions wanted in the middle of a window (more than: tissue)
CASES = {
    "0.108 um, 500 genes, tissue": ({}, SIDE, True),
    "0.108 um, 500 genes, empty": ({}, SIDE, False),
    "0.425 um, 500 genes, tissue": ({"pixel_um": 0.425}, SIDE, True),
    "0.85 um, 60 genes, tissue": ({"pixel_um": 0.85, "genes": 60}, 1024, True),
    "0.108 um, 5,000 genes, tissue": ({"genes": 5000}, SIDE, True),
}


def windows(brain: VirtualBrain, side: int, count: int, tissue: bool) -> list[tuple[int, Box]]:
    """Windows spread over a whole brain, in tissue throughout or without any."""
    random = np.random.default_rng(0)
    height, width = brain.settings.pixels
    found: list[tuple[int, Box]] = []
    while len(found) < count:
        section = int((len(found) + 0.5) / count * brain.settings.sections)
        y, x = int(random.integers(0, height - side)), int(random.integers(0, width - side))
        at = [np.linspace(start, start + side, 5) * brain.settings.pixel_um for start in (y, x)]
        region = brain.regions_at(section, at[0][:, None], at[1][None, :])
        if (region > 1).all() if tissue else (region == 0).all():
            found.append((section, Box(y, y + side, x, x + side)))
    return found


def measure(case: str, count: int, largest: int = SIDE) -> dict[str, float]:
    """Rates of a case, median and extremes over its windows; the first window, which fills tables, is not counted."""
    changes, side, tissue = CASES[case]
    side = min(side, largest)
    brain = VirtualBrain(Settings.of("main", "brain", **changes))
    brain.transcripts(25, Box(0, 64, 0, 64))
    pixels, transcripts = [], []
    for section, box in windows(brain, side, count + 1, tissue):
        begin = time.process_time()
        window = brain.window(section, box)
        middle = time.process_time()
        brain.transcripts(section, box)
        pixels.append(side**2 / 1e6 / (middle - begin))
        transcripts.append(len(window.transcripts) / (time.process_time() - middle))
    rates, reads = np.array(pixels[1:]), np.array(transcripts[1:])
    return {
        "megapixels_s": float(np.median(rates)),
        "megapixels_s_min": float(rates.min()),
        "megapixels_s_max": float(rates.max()),
        "transcripts_s": float(np.median(reads)),
    }


def peak_mb(side_um: float, count: int) -> float:
    """Peak memory in MB of a fresh process that computes windows of a section of the given width."""
    code = f"import simulate; simulate.fill({side_um}, {count})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)  # noqa: S603
    return float(done.stdout)


def fill(side_um: float, count: int) -> None:
    """Compute windows of a section and print this process' peak memory in MB."""
    whole = Settings.of("main", "brain")
    brain = VirtualBrain(
        Settings.of("main", "brain", height_um=side_um * 0.69, width_um=side_um, corner_um=(1500.0, -side_um / 2))
        if side_um < whole.width_um
        else whole
    )
    boxes = list(brain.canvas.tiles(SIDE, SIDE))
    for box in boxes[len(boxes) // 2 : len(boxes) // 2 + count]:
        brain.window(25, box)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer windows")
    parser.add_argument("--tiny", action="store_true", help="one window a case and no memory: a check of this script")
    options = parser.parse_args(arguments)
    count = 1 if options.tiny else 3 if options.quick else 8
    machine = platform.processor() or platform.machine()
    print(f"one process, windows of up to {SIDE} px, both stains, 16 bit; {machine}, numpy {np.__version__}")
    print(f"{'case':<32} {'Mpx/s':>7} {'min-max':>13} {'transcripts/s':>14}")
    rows = []
    for case in list(CASES)[:: 4 if options.tiny else 1]:
        row = measure(case, count, 128 if options.tiny else SIDE)
        spread = f"{row['megapixels_s_min']:.2f}-{row['megapixels_s_max']:.2f}"
        print(f"{case:<32} {row['megapixels_s']:7.2f} {spread:>13} {row['transcripts_s']:14,.0f}")
        rows.append({"case": case, **{name: round(value, 3) for name, value in row.items()}})
    memory = {}
    for side_um in () if options.tiny else (500.0, 2000.0, 20000.0):
        memory[f"{side_um:g}"] = round(peak_mb(side_um, 2 if options.quick else 4), 0)
        print(f"peak memory, section {min(side_um, 11501.6):,.0f} um wide: {memory[f'{side_um:g}']:,.0f} MB")
    first = rows[0]
    print(
        json.dumps(
            {
                "benchmark": "simulate",
                "megapixels_s": first["megapixels_s"],
                "transcripts_s": first["transcripts_s"],
                "rows": rows,
                "peak_mb": memory,
                "under_2_gb": all(value < 2000 for value in memory.values()),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
