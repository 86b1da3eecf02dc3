"""What an evaluation costs: MB/s a core of each metric, then a whole run on a large simulated volume.

The large brain is a simulated tile, mirrored until it fills the asked-for square (mirrored, so that no edge is made),
beside a strip of the same tissue that counts as the training region. The "generated" volume is the real one, blurred,
darkened and noisy. The whole run is `tera-mind evaluate` itself, in a process of its own; its memory is the sum of the
proportional set sizes of all its processes, looked at five times a second (Linux).

Beside the project's own way stands, where there is one, the library a user would take instead, on the same pixels:
torchmetrics for SSIM and MS-SSIM, scikit-image's regionprops_table for the nuclei's measures. The largest difference of
their results is printed beside the ratio of their times.

    python benchmarks/evaluate.py [--quick] [--side 8192] [--workers 2] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from threadpoolctl import threadpool_limits
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from tera_mind.formats.brain import Brain, Transcripts, create_brain
from tera_mind.formats.volume import Volume, VolumeAttributes
from tera_mind.geometry import Box
from tera_mind.metrics import fidelity, seam_sums, spectra
from tera_mind.metrics.nuclei.segmenters import NucleusSettings, Watershed
from tera_mind.metrics.nuclei.table import measure_nuclei
from tera_mind.metrics.tiles.features import EfficientNetLite0, image_features
from tera_mind.metrics.zcontinuity import section_correlations

Pixels = NDArray[np.uint8]

#: pixels of the simulated tile, sections and pixel size
TILE_PX, SECTIONS, PIXEL_UM = 1024, 2, 0.425
#: width of the training strip
TRAIN_PX = 1024
PATCH_PX = 64


def simulated_tile(folder: Path) -> Brain:
    """Two simulated sections of `TILE_PX` a side, through the commands a user types."""
    size = str(TILE_PX * PIXEL_UM)
    run("simulate", "--out", folder / "tissue", "--height-um", size, "--width-um", size, "--pixel-um", PIXEL_UM,
        "--sections", SECTIONS, "--genes", 100)  # fmt: skip
    sections = sorted((folder / "tissue").glob("section_*"))
    run("ingest", "merscope", *sections, "--out", folder / "tile.zarr", "--pixel-um", PIXEL_UM)
    return Brain.open(folder / "tile.zarr")


def run(*command: object) -> None:
    line = [sys.executable, "-m", "tera_mind.cli.main", *map(str, command)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command


def mirrored(tile: np.ndarray, height: int, width: int) -> np.ndarray:
    """The last two axes continued by their mirror image."""
    for axis, size in ((-2, height), (-1, width)):
        turns = -(-size // tile.shape[axis])
        tile = np.concatenate([np.flip(tile, axis) if turn % 2 else tile for turn in range(turns)], axis)
    return tile[..., :height, :width]


def mirrored_rows(rows: Transcripts, side: int, height: int, width: int) -> Transcripts:
    """Transcripts of a square, continued likewise."""
    parts = []
    for row in range(-(-height // side)):
        for column in range(-(-width // side)):
            y = (side - 1 - rows.y if row % 2 else rows.y) + row * side
            x = (side - 1 - rows.x if column % 2 else rows.x) + column * side
            kept = (y < height) & (x < width)
            parts.append((y[kept], x[kept], rows.gene[kept], rows.count[kept]))
    return Transcripts(*(np.concatenate(column).astype(np.int32) for column in zip(*parts, strict=True)))


def make_case(folder: Path, side: int) -> tuple[Brain, Volume]:
    """The large brain and its "generated" volume."""
    tile = simulated_tile(folder)
    edge = min(tile.canvas.height, tile.canvas.width)
    box = Box(0, edge, 0, edge)
    width = side + TRAIN_PX
    image = mirrored(tile.image(box), side, width)
    rows = [mirrored_rows(tile.transcripts(s, box), edge, side, width) for s in range(SECTIONS)]
    brain = create_brain(
        folder / "brain.zarr",
        image=image,
        transcripts=rows,
        genes=tile.genes,
        stains=tile.stains,
        pixel_um=tile.pixel_um,
    )
    test = Box(0, side, TRAIN_PX, width)
    random = np.random.default_rng(0)
    made = np.empty((len(tile.stains), SECTIONS, side, side), np.uint8)
    for stain in range(len(tile.stains)):
        for section in range(SECTIONS):
            plane = ndimage.gaussian_filter(image[stain, section, :, TRAIN_PX:].astype(np.float32), 1.0)
            noisy = 0.95 * plane + random.normal(0, 2, plane.shape).astype(np.float32)
            made[stain, section] = np.clip(np.rint(noisy), 0, 255)
    attributes = VolumeAttributes(
        stains=brain.stains, pixel_um=brain.pixel_um, brain="bench", brain_fingerprint=brain.fingerprint, box=test,
        sections=tuple(range(SECTIONS)), patch_px=PATCH_PX, checkpoint="0" * 64, seed=0, steps=15,
    )  # fmt: skip
    return brain, Volume.write(folder / "generated.zarr", made, attributes)


def timed(work: Callable[[], Any], turns: int) -> list[float]:
    seconds = []
    for _ in range(turns):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return seconds


@dataclass(frozen=True)
class Case:
    """A metric on one block: our way and, where there is one, a library's, which must give the same."""

    name: str
    ours: Callable[[], Any]
    library: str = ""
    theirs: Callable[[], Any] | None = None

    def difference(self) -> float:
        assert self.theirs is not None
        return float(np.max(np.abs(np.asarray(self.ours(), float) - np.asarray(self.theirs(), float))))


def cases(real: Pixels, made: Pixels, rows: Transcripts, pixel_um: float) -> list[Case]:
    """Every metric on a block of one stain; squares, tiles and cells as an evaluation takes them."""
    whole, side = 2 * PATCH_PX, real.shape[0]
    area = Box(0, side, 0, side)
    patches, large = (list(area.tiles(px, px)) for px in (whole, fidelity.large_side(whole)))
    large = [box for box in large if box.height == box.width == fidelity.large_side(whole)]
    cells = np.arange(len(patches))
    blur_px = 2.0 / pixel_um
    pairs, pairs_large = ([fidelity.cut(x, boxes) for x in (made, real)] for boxes in (patches, large))
    grid = seam_sums.SeamGrid(area, PATCH_PX, (0, 0), PATCH_PX, seam_sums.seam_cell_px(area, PATCH_PX))
    segmenter = Watershed(pixel_um, NucleusSettings())
    scale = segmenter.calibrate([real])
    labels = segmenter.segment(made, scale)
    tiles = np.array([(b.y0, b.y1, b.x0, b.x1) for b in area.tiles(128, 128)])
    network = EfficientNetLite0()
    image_features(made, tiles, network)  # loads it

    def table() -> Any:
        found = measure_nuclei(labels, made, pixel_um, area, area, rows, section=0)
        return np.sort(found.area_um2) / pixel_um**2

    def regions() -> Any:
        found = measure.regionprops_table(
            labels, made, properties=("area", "centroid", "eccentricity", "intensity_mean")
        )
        return np.sort(found["area"])

    return [
        Case("PSNR, SSIM, blurred, r", lambda: fidelity.patch_scores(made, real, patches, blur_px)),
        Case("SSIM", lambda: fidelity.ssim(*pairs), "torchmetrics", lambda: _torch_ssim(*pairs)),
        Case("MS-SSIM", lambda: fidelity.ms_ssim(*pairs_large), "torchmetrics", lambda: _torch_ms_ssim(*pairs_large)),
        Case("seams", lambda: seam_sums.seam_sums(made, area, area, grid)),
        Case("power spectrum", lambda: spectra.power_sums(made, patches, cells, whole)),
        Case("histogram", lambda: spectra.histogram_sums(made, patches, cells)),
        Case("continuity along z", lambda: section_correlations(made, real, patches, blur_px)),
        Case("features, 128 px tiles", lambda: image_features(made, tiles, network)),
        Case("nuclei: segmentation", lambda: segmenter.segment(made, scale)),
        Case("nuclei: measures", table, "scikit-image", regions),
    ]


def _torch_ssim(made: Pixels, real: Pixels) -> Any:
    pair = [torch.from_numpy(x.astype(np.float32))[:, None] for x in (made, real)]
    return structural_similarity_index_measure(*pair, sigma=1.5, data_range=255.0, reduction="none")


def _torch_ms_ssim(made: Pixels, real: Pixels) -> Any:
    pair = [torch.from_numpy(x.astype(np.float32))[:, None] for x in (made, real)]
    return multiscale_structural_similarity_index_measure(
        *pair, sigma=1.5, data_range=255.0, reduction="none", normalize="relu"
    )


def metric_table(brain: Brain, volume: Volume, turns: int) -> list[dict[str, Any]]:
    """Each metric alone on one block of one stain, one thread: MB of pixels a second (of both images where paired)."""
    torch.set_num_threads(1)
    side = min(1024, volume.box.height, volume.box.width)
    box = Box(volume.box.y0, volume.box.y0 + side, volume.box.x0, volume.box.x0 + side)
    real, made = brain.image(box, [0])[0, 0], volume.image(box, [0])[0, 0]
    table = []
    with threadpool_limits(1):
        for case in cases(real, made, brain.transcripts(0, box), brain.pixel_um):
            seconds = timed(case.ours, turns)
            row: dict[str, Any] = {"metric": case.name, "mb_per_s": real.nbytes / 1e6 / statistics.median(seconds)}
            row["seconds_min"], row["seconds_max"] = min(seconds), max(seconds)
            if case.theirs is not None:
                ratio = statistics.median(timed(case.theirs, turns)) / statistics.median(seconds)
                row |= {"library": case.library, "difference": case.difference(), "ratio": ratio}
            table.append(row)
    return table


def memory_gb(pid: int) -> float:
    """Proportional set size of a process and all below it."""
    total, waiting = 0, [pid]
    while waiting:
        current = waiting.pop()
        try:
            rollup = Path(f"/proc/{current}/smaps_rollup").read_text()
            total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
            for task in Path(f"/proc/{current}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text().split()]
        except (OSError, StopIteration, ProcessLookupError):
            continue  # it ended while we looked
    return total / 1e6


def whole_run(folder: Path, workers: int) -> dict[str, float]:
    """`tera-mind evaluate` as a user calls it: seconds and most memory."""
    command = [sys.executable, "-m", "tera_mind.cli.main", "evaluate", "--brain", str(folder / "brain.zarr"),
               "--generated", str(folder / "generated.zarr"), "--train-region", f":,:{TRAIN_PX}",
               "--out", str(folder / "evaluation"), "--workers", str(workers)]  # fmt: skip
    begin, most = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    while process.poll() is None:
        most = max(most, memory_gb(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"evaluate ended with {process.returncode}")
    return {"seconds": time.perf_counter() - begin, "memory_gb": most}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a square of 1,024 px, one turn")
    parser.add_argument("--tiny", action="store_true", help="a square of 512 px, for the tests")
    parser.add_argument("--side", type=int, default=8192, help="side of the volume in px (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the whole run (default %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns of each metric (default %(default)s)")
    parser.add_argument("--device", choices=("cpu",), default="cpu", help="evaluation runs on CPUs")
    parser.add_argument("--keep", type=Path, help="folder for the data and the evaluation (default: temporary)")
    options = parser.parse_args(arguments)
    side = 512 if options.tiny else 1024 if options.quick else options.side
    turns = 1 if options.tiny or options.quick else options.turns
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        brain, volume = make_case(folder, side)
        table = metric_table(brain, volume, turns)
        result = whole_run(folder, options.workers)
    print(f"evaluate: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{'metric, one core':<28}{'MB/s':>8}{'slowest to fastest, s':>24}   library (times as long), difference")
    for row in table:
        spread = f"{row['seconds_max']:.3f} to {row['seconds_min']:.3f}"
        rival = f"{row['library']} ({row['ratio']:.1f}), {row['difference']:.1e}" if "library" in row else ""
        print(f"{row['metric']:<28}{row['mb_per_s']:>8.1f}{spread:>24}   {rival}")
    print(
        f"whole run: {side} x {side} px, {SECTIONS} sections, {len(brain.stains)} stains, {options.workers} workers: "
        f"{result['seconds'] / 60:.1f} min, {result['memory_gb']:.2f} GB"
    )
    print(json.dumps({"benchmark": "evaluate", "side_px": side, "workers": options.workers, **result, "rows": table}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
