"""Transcripts of a window of 128 x 128 px and 4 sections: the brain store beside Parquet and SpatialData, in turns.

Transcripts are spread at random at a real section's density (60 per 100 um2 at 0.108 um a pixel), with 500 genes and,
the same transcripts, with 20,000. Every reader reads the same windows, in turns of random order, and what they read is
compared. Readers:
  store       `Brain.transcripts`, one call a section
  parquet     one file a section, sorted as the store is, by tiles of 256 px; row groups are chosen by statistics that
              were read before, into arrays, and the open file is kept. Several row group sizes and codecs are tried;
              `ratio_parquet` is against the fastest of them, `ratio_parquet_packed` against the fastest that is packed
  spatialdata `bounding_box_query` on points, read lazily from the SpatialData store that the library wrote
`ratio` is against SpatialData. Medians of the time on the wall, and the 10th and 90th percentile over windows of the
ratio in one window; `cpu` is the same for the processor time of all threads, which other work on the machine changes
less.

    python benchmarks/windows.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from tera_mind.formats.brain import Brain, Transcripts, create_brain, gene_bins
from tera_mind.geometry import Box

SECTIONS, WINDOW_PX, BIN_PX, PIXEL_UM = 4, 128, 16, 0.108
DENSITY_UM2 = 0.6
PANELS = (500, 20_000)
#: rows of a row group, codec, dictionary encoding
PARQUET = {
    "parquet snappy 1k": (1024, "snappy", True),
    "parquet snappy 32k": (32768, "snappy", True),
    "parquet zstd 2k": (2048, "zstd", False),
    "parquet plain 1k": (1024, "none", False),
}
#: y, x from the window's corner, gene, count of one section
Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Reader = Callable[[int, Box], Rows]


def make_sections(side_px: int, genes: int) -> list[Transcripts]:
    """Random transcripts: genes of unequal abundance; the larger panel splits each of the smaller one's genes."""
    count = int(side_px**2 * PIXEL_UM**2 * DENSITY_UM2)
    abundance = np.random.default_rng(0).lognormal(0.0, 1.2, PANELS[0])
    split = genes // PANELS[0]
    sections = []
    for section in range(SECTIONS):
        rng = np.random.default_rng([1, section])
        y, x = rng.integers(0, side_px, (2, count), np.int32)
        gene = rng.choice(PANELS[0], count, p=abundance / abundance.sum())
        gene = gene * split + rng.integers(0, split, count)
        key = (y.astype(np.int64) * side_px + x) * genes + gene
        _, first = np.unique(key, return_index=True)
        sections.append(Transcripts(y[first], x[first], gene[first].astype(np.int32), np.ones(len(first), np.int32)))
    return sections


def make_store(path: Path, side_px: int, genes: int) -> Brain:
    return create_brain(
        path,
        image=np.zeros((1, SECTIONS, side_px, side_px), np.uint8),
        transcripts=make_sections(side_px, genes),
        genes=[f"gene{index}" for index in range(genes)],
        stains=["DAPI"],
        pixel_um=PIXEL_UM,
    )


class ParquetSections:
    """Sorted Parquet files with the bounds of their row groups in memory."""

    def __init__(self, folder: Path, brain: Brain, rows: int, codec: str, dictionary: bool) -> None:
        folder.mkdir()
        self.files, self.bounds = [], []
        for section in range(SECTIONS):
            all_rows = brain.transcripts(section, brain.canvas)
            order = np.lexsort((all_rows.x, all_rows.y, all_rows.x // 256, all_rows.y // 256))
            columns = {n: getattr(all_rows, n)[order].astype(np.uint16) for n in ("y", "x", "gene", "count")}
            path = folder / f"{section}.parquet"
            pq.write_table(pa.table(columns), path, row_group_size=rows, compression=codec, use_dictionary=dictionary)
            file = pq.ParquetFile(path, memory_map=True)
            self.files.append(file)
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            statistics = [[group.column(column).statistics for group in groups] for column in (0, 1)]
            self.bounds.append([(np.array([s.min for s in c]), np.array([s.max for s in c])) for c in statistics])

    def __call__(self, section: int, box: Box) -> Rows:
        (y_min, y_max), (x_min, x_max) = self.bounds[section]
        groups = np.flatnonzero((y_min < box.y1) & (y_max >= box.y0) & (x_min < box.x1) & (x_max >= box.x0))
        table = self.files[section].read_row_groups(groups.tolist(), use_threads=False)
        y, x, gene, count = (table.column(index).to_numpy() for index in range(4))
        kept = (y >= box.y0) & (y < box.y1) & (x >= box.x0) & (x < box.x1)
        return y[kept] - box.y0, x[kept] - box.x0, gene[kept], count[kept]


class SpatialDataSections:
    """Points of a SpatialData store, one element a section."""

    def __init__(self, path: Path, brain: Brain) -> None:
        import spatialdata
        from spatialdata.models import PointsModel

        points = {}
        for section in range(SECTIONS):
            rows = brain.transcripts(section, brain.canvas)
            frame = pd.DataFrame({"x": rows.x + 0.5, "y": rows.y + 0.5, "gene": rows.gene, "count": rows.count})
            points[f"section{section}"] = PointsModel.parse(frame)
        spatialdata.SpatialData(points=points).write(path)
        self.points = spatialdata.read_zarr(path).points

    def __call__(self, section: int, box: Box) -> Rows:
        from spatialdata import bounding_box_query

        found = bounding_box_query(
            self.points[f"section{section}"],
            axes=("x", "y"),
            min_coordinate=[box.x0, box.y0],
            max_coordinate=[box.x1, box.y1],
            target_coordinate_system="global",
        ).compute()
        y, x = (np.floor(found[axis].to_numpy()).astype(np.int64) for axis in "yx")
        return y - box.y0, x - box.x0, found["gene"].to_numpy(), found["count"].to_numpy()


def store_reader(brain: Brain) -> Reader:
    def read(section: int, box: Box) -> Rows:
        rows = brain.transcripts(section, box)
        return rows.y, rows.x, rows.gene, rows.count

    return read


def ordered(rows: Rows) -> np.ndarray:
    table = np.stack([column.astype(np.int64) for column in rows])
    return table[:, np.lexsort(table[::-1])]


def measure(readers: dict[str, Reader], boxes: Sequence[Box], slow: int) -> dict[str, np.ndarray]:
    """Seconds a window of every reader, wall and processor (2, window), in turns; all must read the same.

    SpatialData reads only the first `slow` windows.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    for number, box in enumerate(boxes):
        read: dict[str, list[Rows]] = {}
        for place in np.random.default_rng([3, number]).permutation(len(readers)).tolist():
            name, reader = list(readers.items())[place]  # whoever comes after another finds the caches cold
            if name == "spatialdata" and number >= slow:
                continue
            begin, busy = time.perf_counter(), time.process_time()
            read[name] = [reader(section, box) for section in range(SECTIONS)]
            seconds[name].append((time.perf_counter() - begin, time.process_time() - busy))
        for name, sections in read.items():
            if "20,000" not in name and not all(map(same, sections, read["store 500 genes"])):
                raise SystemExit(f"{name} read other transcripts than the store in {box}")
    return {name: np.array(times).T for name, times in seconds.items()}


def same(one: Rows, other: Rows) -> bool:
    return np.array_equal(ordered(one), ordered(other))


def ratio(times: dict[str, np.ndarray], slow: str, fast: str) -> dict[str, float]:
    count = min(times[slow].shape[1], times[fast].shape[1])
    one, other = times[slow][:, :count], times[fast][:, :count]
    low, high = np.percentile(one[0] / other[0], [10, 90])
    wall, cpu = np.median(one, axis=1) / np.median(other, axis=1)
    return {"ratio": float(wall), "p10": float(low), "p90": float(high), "cpu": float(cpu)}


def bins_cost(brain: Brain, boxes: Sequence[Box]) -> float:
    """Median seconds of the dense counts of a window."""
    seconds = []
    for box in boxes:
        begin = time.perf_counter()
        gene_bins(brain, range(SECTIONS), box, BIN_PX)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def run(folder: Path, side_px: int, windows: int, slow: int) -> dict[str, Any]:
    brains = {genes: make_store(folder / f"{genes}.zarr", side_px, genes) for genes in PANELS}
    readers: dict[str, Reader] = {f"store {genes:,} genes": store_reader(brain) for genes, brain in brains.items()}
    sizes = {f"store {genes:,} genes": folder_bytes(brain.path / "transcripts") for genes, brain in brains.items()}
    for name, (rows, codec, dictionary) in PARQUET.items():
        readers[name] = ParquetSections(folder / name, brains[PANELS[0]], rows, codec, dictionary)
        sizes[name] = folder_bytes(folder / name)
    readers["spatialdata"] = SpatialDataSections(folder / "points.zarr", brains[PANELS[0]])
    sizes["spatialdata"] = folder_bytes(folder / "points.zarr")
    rng = np.random.default_rng(2)
    corners = rng.integers(0, side_px - WINDOW_PX, (windows, 2)).tolist()
    boxes = [Box(y, y + WINDOW_PX, x, x + WINDOW_PX) for y, x in corners]
    measure(readers, boxes[:3], slow=1)  # files come into the page cache, libraries are loaded
    times = measure(readers, boxes, slow)
    total = sum(section.transcripts for section in brains[PANELS[0]].sections)
    print(f"{total:,} transcripts, {SECTIONS} sections of {side_px} px; {windows} windows (spatialdata: {slow})")
    print(f"{'reader':<22} {'median ms':>10} {'p10':>8} {'p90':>8} {'cpu ms':>8} {'bytes/transcript':>17}")
    for name, (seconds, busy) in times.items():
        p10, p50, p90 = np.percentile(seconds, [10, 50, 90]) * 1e3
        cpu = np.median(busy) * 1e3
        print(f"{name:<22} {p50:10.3f} {p10:8.3f} {p90:8.3f} {cpu:8.3f} {sizes[name] / total:17.2f}")
    store, large = (f"store {genes:,} genes" for genes in PANELS)

    def median_of(name: str) -> float:
        return float(np.median(times[name][0]))

    fastest = min(PARQUET, key=median_of)
    packed = min((n for n, p in PARQUET.items() if p[1] != "none"), key=median_of)
    bins = {genes: bins_cost(brain, boxes) for genes, brain in brains.items()}
    found = {
        "spatialdata": ratio(times, "spatialdata", store),
        "parquet": ratio(times, fastest, store) | {"reader": fastest},
        "parquet_packed": ratio(times, packed, store) | {"reader": packed},
        "parquet_32k": ratio(times, "parquet snappy 32k", store),
        "genes_20000": ratio(times, large, store),
    }
    for name, values in found.items():
        spread = f"{values['p10']:.2f}-{values['p90']:.2f} in a window"
        print(f"{name:<22} {values['ratio']:8.2f} times the store ({spread}; cpu {values['cpu']:.2f})")
    print(f"dense counts in {BIN_PX} px bins: " + ", ".join(f"{g:,} genes {s * 1e3:.2f} ms" for g, s in bins.items()))
    return {
        "median_ms": {name: round(median_of(name) * 1e3, 4) for name in times},
        "bytes_per_transcript": {name: round(size / total, 3) for name, size in sizes.items()},
        "ratios": found,
        "bins_ms": {str(genes): round(seconds * 1e3, 3) for genes, seconds in bins.items()},
        "transcripts": total,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sections, fewer windows")
    parser.add_argument("--tiny", action="store_true", help="a few windows: a check of this script")
    options = parser.parse_args(arguments)
    side, windows, slow = (1024, 4, 1) if options.tiny else (8192, 200, 12) if options.quick else (16384, 500, 25)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    machine = platform.processor() or platform.machine()
    print(f"cpu {machine}, numpy {np.__version__}, zarr {zarr.__version__}, pyarrow {pa.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), side, windows, slow)
    ratios = result["ratios"]
    last = {
        "benchmark": "windows",
        "ratio": ratios["spatialdata"]["ratio"],
        "ratio_parquet": ratios["parquet"]["ratio"],
        "ratio_parquet_packed": ratios["parquet_packed"]["ratio"],
        "ratio_genes": ratios["genes_20000"]["ratio"],
    }
    print(json.dumps(last | result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
