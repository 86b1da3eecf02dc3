"""Pairs a second of the data module, beside two other ways to the same pairs, in turns in one run.

A pair is 128 x 128 px of 2 sections and 2 stains with 4 sections of 500 genes in 16 px bins. Ways:

- `stream`: the data module, one process: shards -> crops -> batch as it leaves the loader (uint8, a row a transcript);
- `completed`: the same, turned, binned and normalised on this CPU too, which training does on the GPU;
- `workers`: the same as `stream`, made by two loading processes;
- `store`: the same crops from the brain store (zarr), turned and binned with NumPy;
- `tiles`: the published way: a tile of 512 px is loaded whole - all 50 sections of images from a zarr-v2 zip, all
  transcripts from a compressed COO npz (y, x, section * genes + gene) - then cropped, turned and binned.

No way keeps what it read for another batch, except that the stream cuts several crops of a slab. Files are in the
page cache. All ways give the same numbers for the same places, which is checked first. Rates are pairs a second of
processor time ("a core"), so that other work on the machine counts little, and of wall time; with two loading
processes only wall time means something, and what they had loaded before a turn is taken out before it.

    python benchmarks/datamodule.py [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

from datamodules.pairs import PairsDataModule
from datamodules.slabs import SlabReader
from tera_mind.formats.brain import Brain, Transcripts, bin_transcripts, create_brain
from tera_mind.formats.shard_plan import plan_shards
from tera_mind.formats.shards import write_shards
from tera_mind.geometry import Box

CROP, BIN, TILE, MARGIN = 128, 16, 512, 128
WORKERS = 2
#: a sample of the published network, forward and backward: multiply-adds, of which each is two operations
SAMPLE_MACS = 1288e9
#: dense bf16 peak of an H100 SXM, and the share of it that training is hoped to reach
H100_FLOPS, SHARE = 989e12, 0.4


@dataclass(frozen=True)
class Size:
    """What is read: side of the canvas, sections, genes, batch; batches a turn of the fast ways and of the slow."""

    side: int
    sections: int
    genes: int
    batch: int
    fast: int
    slow: int
    turns: int


SIZES = {
    "tiny": Size(512, 4, 20, 4, 2, 1, 1),
    "quick": Size(1024, 50, 500, 32, 8, 1, 3),
    "full": Size(1536, 50, 500, 32, 24, 2, 7),
}


def make_data(folder: Path, size: Size) -> Brain:
    """A brain of smooth noise with 60 transcripts in 100 square microns, its shards, and its published tiles."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 200, (2, size.sections, size.side // 8, size.side // 8))
    image = (coarse.repeat(8, 2).repeat(8, 3) + random.integers(0, 55, (size.side, size.side))).astype(np.uint8)
    count = int(60 * (size.side * 0.108) ** 2 / 100)
    rows = [
        Transcripts(
            *(random.integers(limit, size=count).astype(np.int32) for limit in (size.side, size.side, size.genes)),
            np.ones(count, np.int32),
        )
        for _ in range(size.sections)
    ]
    brain = create_brain(
        folder / "brain.zarr", image=image, transcripts=rows, stains=("DAPI", "PolyT"), pixel_um=0.108,
        genes=[f"gene{number}" for number in range(size.genes)],
    )  # fmt: skip
    few = slice(0, 4)  # pairs of a few sections are enough: what is read does not depend on how many there are
    shown = create_brain(
        folder / "shown.zarr", image=image[:, few], transcripts=rows[few], stains=brain.stains, pixel_um=0.108,
        genes=brain.genes,
    )  # fmt: skip
    write_shards([shown], folder / "shards", plan_shards([shown], gene_sections=4))
    write_tiles(brain, folder / "tiles")
    return brain


def write_tiles(brain: Brain, folder: Path) -> None:
    """The published layout: overlapping tiles of 256 px with a margin of 128 px all round."""
    folder.mkdir()
    core = TILE - 2 * MARGIN
    for box in Box(MARGIN, brain.canvas.y1 - MARGIN, MARGIN, brain.canvas.x1 - MARGIN).tiles(core, core):
        whole = Box(box.y0 - MARGIN, box.y0 - MARGIN + TILE, box.x0 - MARGIN, box.x0 - MARGIN + TILE)
        name = f"{box.y0}_{box.x0}"
        image = brain.image(whole).reshape(-1, TILE, TILE)  # all sections of the first stain, then of the second
        with zarr.storage.ZipStore(folder / f"{name}.zarr.zip", mode="w") as store:
            array = zarr.create_array(store, shape=image.shape, dtype="uint8", chunks=(1, TILE, TILE), zarr_format=2)
            array[:] = image
        sections = [brain.transcripts(section, whole) for section in range(len(brain.sections))]
        channel = [number * len(brain.genes) + rows.gene for number, rows in enumerate(sections)]
        columns = [np.concatenate([rows.y for rows in sections]), np.concatenate([rows.x for rows in sections])]
        np.savez_compressed(
            folder / f"{name}.npz",
            coords=np.stack([*columns, np.concatenate(channel)]),
            data=np.concatenate([rows.count for rows in sections]).astype(np.uint8),
            shape=np.array([TILE, TILE, len(brain.sections) * len(brain.genes)]),
        )


def turned_pair(image: NDArray[np.uint8], rows: Sequence[Transcripts], symmetry: int, genes: int) -> tuple[Any, Any]:
    """Turn a crop with NumPy, then bin and normalise it: image float32, counts float32."""
    quarters, flipped, last = symmetry % 4, symmetry >= 4, np.int32(CROP - 1)
    image = np.rot90(image, quarters, axes=(-2, -1))
    if flipped:
        image = image[..., ::-1]
    layers = []
    for section in rows:
        y, x = section.y, section.x
        for _ in range(quarters):
            y, x = last - x, y
        placed = Transcripts(y, last - x if flipped else x, section.gene, section.count)
        layers.append(bin_transcripts(placed, (CROP, CROP), BIN, genes))
    return (image / 127.5 - 1).astype(np.float32), np.stack(layers, axis=1)


def from_store(brain: Brain, first: int, y: int, x: int, symmetry: int) -> tuple[Any, Any]:
    """A pair from the brain store."""
    box = Box(y, y + CROP, x, x + CROP)
    rows = [brain.transcripts(section, box) for section in range(first - 1, first + 3)]
    return turned_pair(brain.image(box, (first, first + 1)), rows, symmetry, len(brain.genes))


def from_tile(brain: Brain, folder: Path, first: int, y: int, x: int, symmetry: int) -> tuple[Any, Any]:
    """A pair from the tile whose core holds its corner: everything is loaded, then cut."""
    core = TILE - 2 * MARGIN
    top, left = (max(0, (at - MARGIN) // core * core) for at in (y, x))
    name = f"{top + MARGIN}_{left + MARGIN}"
    with zarr.storage.ZipStore(folder / f"{name}.zarr.zip", mode="r") as store:
        tile = np.asarray(zarr.open_array(store, mode="r")[:]).reshape(2, -1, TILE, TILE)
    with np.load(folder / f"{name}.npz") as file:
        (rows_y, rows_x, channel), counts = file["coords"], file["data"].astype(np.int32)
    near_y, near_x = rows_y - np.int32(y - top), rows_x - np.int32(x - left)
    section, gene = np.divmod(channel, len(brain.genes))
    inside = (near_y >= 0) & (near_y < CROP) & (near_x >= 0) & (near_x < CROP)
    rows = []
    for number in range(first - 1, first + 3):
        kept = inside & (section == number)
        rows.append(Transcripts(near_y[kept], near_x[kept], gene[kept].astype(np.int32), counts[kept]))
    image = tile[:, first : first + 2, y - top : y - top + CROP, x - left : x - left + CROP]
    return turned_pair(image, rows, symmetry, len(brain.genes))


Place = tuple[int, int, int, int]


def places(size: Size) -> Iterator[Place]:
    """Random first section with context on both sides, corner whose crop lies in the tiles, symmetry."""
    random = np.random.default_rng(1)
    core, most = TILE - 2 * MARGIN, (size.side - 2 * MARGIN) // (TILE - 2 * MARGIN)
    while True:
        y, x = (int(at) for at in random.integers(MARGIN, MARGIN + most * core, 2))
        yield 1, y, x, int(random.integers(8))


def data_module(folder: Path, size: Size, workers: int) -> PairsDataModule:
    return PairsDataModule(
        str(folder / "shards"), batch_size=size.batch, num_workers=workers, steps_per_epoch=100_000,
        patch_px=CROP // 2, bin_px=BIN,
    )  # fmt: skip


def raw_batches(folder: Path, size: Size, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches as they leave the loader under a Trainer; nothing is kept from one batch to the next."""
    loader = data_module(folder, size, workers).train_dataloader()
    loader.finish = lambda batch: batch
    return iter(loader)


def difference(brain: Brain, folder: Path, size: Size) -> float:
    """Largest difference between the ways, over a batch of the stream and places where all have tiles."""
    data = data_module(folder, size, 0)
    raw = next(raw_batches(folder, size, 0))
    batch, apart = data.complete(raw), 0.0
    for number, (_, first, y, x) in enumerate(batch["position"].tolist()):
        symmetry = int(raw["symmetry"][number])
        if first == 1:  # elsewhere the shown sections end and the brain goes on
            image, counts = from_store(brain, first, y, x, symmetry)
            apart = max(apart, float(np.abs(image - batch["image"][number].numpy()).max()))
            apart = max(apart, float(np.abs(counts - batch["genes"][number].numpy()).max()))
    for place in itertools.islice(places(size), 4):
        pairs = zip(from_store(brain, *place), from_tile(brain, folder / "tiles", *place), strict=True)
        apart = max(apart, *(float(np.abs(a - b).max()) for a, b in pairs))
    return apart


def rate(step: Callable[[], object], steps: int, batch: int, *, ahead: int = 0) -> tuple[float, float]:
    """Pairs a second of processor time of this process, and of wall time; `ahead` batches are taken out before."""
    for _ in range(ahead):
        step()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return steps * batch / (time.process_time() - processor), steps * batch / (time.perf_counter() - wall)


def ways(brain: Brain, folder: Path, size: Size) -> dict[str, tuple[Callable[[], object], int]]:
    """A step of every way, and how many make a turn."""
    stream, completed, workers = (raw_batches(folder, size, count) for count in (0, 0, WORKERS))
    data, at = data_module(folder, size, 0), places(size)

    def batch_of(pair: Callable[..., tuple[Any, Any]], *source: Any) -> object:
        images, counts = zip(*(pair(*source, *next(at)) for _ in range(size.batch)), strict=True)
        return np.stack(images), np.stack(counts)

    return {
        "stream": (lambda: next(stream), size.fast),
        "completed": (lambda: data.complete(next(completed)), size.fast),
        "workers": (lambda: next(workers), size.fast),
        "store": (lambda: batch_of(from_store, brain), size.slow),
        "tiles": (lambda: batch_of(from_tile, brain, folder / "tiles"), size.slow),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller brain and fewer turns: under 3 minutes")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    options = parser.parse_args(arguments)
    size = SIZES["tiny" if options.tiny else "quick" if options.quick else "full"]
    torch.set_num_threads(1)
    SlabReader.__init__.__defaults__ = (0.0,)  # a real brain is larger than the cache of slabs; so shall this be
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        brain = make_data(folder, size)
        apart = difference(brain, folder, size)
        if not apart <= 1e-6:
            raise SystemExit(f"the ways differ by {apart:.1e}: nothing to compare")
        steps = ways(brain, folder, size)
        for step, _ in steps.values():
            step()
        rates: dict[str, list[tuple[float, float]]] = {way: [] for way in steps}
        for _ in range(size.turns):
            for way, (step, count) in steps.items():
                ahead = 2 * WORKERS if way == "workers" else 0  # torch loads two batches a process ahead
                rates[way].append(rate(step, count, size.batch, ahead=ahead))
    return report(size, rates, apart)


def report(size: Size, rates: dict[str, list[tuple[float, float]]], apart: float) -> int:
    needed = SHARE * H100_FLOPS / (2 * SAMPLE_MACS)
    machine = f"CPU {platform.processor() or platform.machine()}, one thread a process"
    software = {"python": platform.python_version(), "torch": torch.__version__, "zarr": zarr.__version__}
    print(f"{machine}; torch {torch.__version__}, zarr {zarr.__version__}, numpy {np.__version__}")
    print(f"{size}; the ways differ by {apart:.1e}")
    print(f"{'way':<10} {'pairs/s a core':>15} {'min-max':>19} {'pairs/s wall':>13} {'times tiles':>12} {'H100s':>6}")
    rows = []
    for way, found in rates.items():
        kind = 1 if way == "workers" else 0  # the time of this process says nothing about the loading ones
        ours, theirs = ([one[kind] for one in rates[name]] for name in (way, "tiles"))
        ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        row: dict[str, Any] = {"way": way, "pairs_s": statistics.median(ours)}
        row |= {"pairs_s_min": min(ours), "pairs_s_max": max(ours)}
        row["pairs_s_wall"] = statistics.median(wall for _, wall in found)
        row |= {"ratio": statistics.median(ratios), "ratio_min": ratios[0], "ratio_max": ratios[-1]}
        rows.append(row)
        core = "-" if way == "workers" else f"{row['pairs_s']:.1f}"
        spread = f"{min(ours):.1f}-{max(ours):.1f}"
        times, cards = row["ratio"], row["pairs_s"] / needed
        print(f"{way:<10} {core:>15} {spread:>19} {row['pairs_s_wall']:>13.1f} {times:>12.1f} {cards:>6.2f}")
    print(
        f"an H100 at {SHARE:.0%} of {H100_FLOPS / 1e12:.0f} TFLOP/s takes {needed:.0f} pairs/s "
        "of the published network; H100s: how many of them the way feeds"
    )
    by_way = {row["way"]: row for row in rows}
    result = {
        "benchmark": "datamodule", "ratio": by_way["completed"]["ratio"], "rows": rows, "h100_needs_pairs_s": needed,
        "ratio_store": by_way["completed"]["pairs_s"] / by_way["store"]["pairs_s"], "difference": apart,
        "device": machine, "software": software,
    }  # fmt: skip
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
