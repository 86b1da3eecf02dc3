"""What ingest costs at the size of a real section: peak memory of all processes, the transcripts' pace beside others.

The section: a simulated window of 2,048 px laid side by side until the wanted canvas is full (as MERSCOPE writes it:
uncompressed 16-bit mosaics of two stains, a CSV of ten columns), its transcripts drawn from the window's with a
shift of a few micrometres. It is made once and kept in --work. Each way runs in a process of its own, in turns:

  pandas        read_csv of the whole file with the C engine: parsing alone, nothing is placed or written
  ours          CSV -> canvas pixels -> external sort -> compressed, durable rows by tile, in one process
  spatialdata   spatialdata-io: read, parse as points, write as zarr; --share of the rows, its pace is compared

Time is that of the work, without the start of Python. Memory is the sum of the proportional set sizes (PSS) of a
process and all its children, sampled twice a second.

    python benchmarks/ingest.py [--quick] [--work FOLDER] [--workers N]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

TILE = 2048
PIXEL_UM = 0.108
ROWS_AT_ONCE = 500_000
#: sections of the benchmark: transcripts, side of the canvas in pixels, share of the rows for spatialdata-io, rounds
SIZES = {"full": (25_000_000, 16_384, 0.2, 3), "quick": (1_500_000, 4096, 1.0, 3), "tiny": (20_000, 512, 1.0, 1)}
#: the slowest way takes part in so many rounds
SPATIALDATA_ROUNDS = 1
ASKED_GB = 3.0


def make_region(folder: Path, rows: int, side: int, share: float) -> None:
    """Write the section, and beside it one with a share of its rows."""
    import pyarrow as pa
    import pyarrow.csv as pacsv
    import tifffile

    from tera_mind.geometry import Box
    from tera_mind.simulate.brains import Settings
    from tera_mind.simulate.windows import STAINS, VirtualBrain

    brain = VirtualBrain(Settings.of("main", "brain"))
    tile = min(TILE, side)
    height, width = brain.settings.pixels
    y, x = height // 2, width // 2 + width // 8
    window = brain.window(25, Box(y, y + tile, x, x + tile))
    drawn = window.transcripts
    y_um, x_um = drawn.y_um - y * PIXEL_UM, drawn.x_um - x * PIXEL_UM
    gene = drawn.gene[drawn.gene < len(brain.genes)]
    y_um, x_um = y_um[drawn.gene < len(brain.genes)], x_um[drawn.gene < len(brain.genes)]
    part = folder.with_name(folder.name + "-part")
    images = folder / "images"
    images.mkdir(parents=True)
    for stain, name in enumerate(STAINS):
        mosaic = tifffile.memmap(images / f"mosaic_{name}_z0.tif", shape=(side, side), dtype="uint16")
        for top in range(0, side, tile):
            mosaic[top : top + tile] = np.tile(window.images[stain, 0], (1, side // tile))
        mosaic.flush()
    scale = 1 / PIXEL_UM
    np.savetxt(images / "micron_to_mosaic_pixel_transform.csv", [[scale, 0, 40], [0, scale, -25], [0, 0, 1.0]])
    part.mkdir()
    (part / "images").symlink_to(images.resolve())
    names, random, extent = np.array(brain.genes), np.random.default_rng(0), side * PIXEL_UM
    with (
        (folder / "detected_transcripts.csv").open("wb") as whole,
        (part / "detected_transcripts.csv").open("wb") as few,
    ):
        for file in (whole, few):
            file.write(b",barcode_id,global_x,global_y,global_z,x,y,fov,gene,transcript_id\n")
        for start in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - start)
            pick = random.integers(len(gene), size=count)
            placed = []
            for positions in (x_um, y_um):
                step = random.integers(side // tile, size=count) * tile * PIXEL_UM
                placed.append((positions[pick] + step + random.normal(0, 3, count)) % (extent - 0.01) + 0.005)
            table = pa.table(
                {
                    "index": np.arange(start, start + count),
                    "barcode_id": gene[pick],
                    "global_x": (placed[0] - 40 * PIXEL_UM).round(4),
                    "global_y": (placed[1] + 25 * PIXEL_UM).round(4),
                    "global_z": random.integers(7, size=count).astype(float),
                    "x": placed[0].round(4),
                    "y": placed[1].round(4),
                    "fov": random.integers(900, size=count),
                    "gene": names[gene[pick]],
                    "transcript_id": np.char.add("ENSMUST", np.char.zfill(gene[pick].astype(str), 11)),
                }
            )
            options = pacsv.WriteOptions(include_header=False, quoting_style="needed")
            pacsv.write_csv(table, whole, options)
            if start < rows * share:
                pacsv.write_csv(table, few, options)
    in_part = min(rows, -(-int(rows * share) // ROWS_AT_ONCE) * ROWS_AT_ONCE)
    (folder / "made.json").write_text(json.dumps({"rows": rows, "part": in_part}))


class Clock:
    """Wall time, and processor time of this process' threads and ended children, from its making on."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), self._used()

    @staticmethod
    def _used() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self._wall, "processor_seconds": self._used() - self._processor}


def pandas_way(region: Path, out: Path, workers: int) -> dict[str, Any]:
    """Parse the CSV; transcripts of each gene."""
    import pandas as pd

    del out, workers
    clock = Clock()
    table = pd.read_csv(region / "detected_transcripts.csv", engine="c")
    return {**clock.read(), "rows": len(table), "genes": table.gene.value_counts().to_dict()}


def spatialdata_way(region: Path, out: Path, workers: int) -> dict[str, Any]:
    """Read, parse and write points with spatialdata-io; transcripts of each gene."""
    del workers
    warnings.simplefilter("ignore")
    import spatialdata
    from spatialdata_io import merscope  # it imports its parts when they are first named

    clock = Clock()
    data = merscope(region, z_layers=None, cells_boundaries=False, cells_table=False, mosaic_images=False)
    data.write(out)
    times = clock.read()
    (points,) = spatialdata.read_zarr(out).points.values()
    genes = points["gene"].compute().value_counts()
    return {**times, "rows": int(genes.sum()), "genes": {str(name): int(n) for name, n in genes.items()}}


def transcripts_way(region: Path, out: Path, workers: int) -> dict[str, Any]:
    """The transcripts' part of an ingest in this process: read, place, sort, write."""
    import pandas as pd  # Arrow imports it with its first conversion: not now

    from tera_mind.formats.brain_writer import BrainWriter
    from tera_mind.ingest.merscope import MerscopeReader
    from tera_mind.ingest.placing import place
    from tera_mind.ingest.reading import read_transcripts, transcripts_mark
    from tera_mind.ingest.work import keep_store, open_work, section_keys
    from tera_mind.ingest.writing import rows_mark, store_path, write_transcripts

    del workers, pd
    clock = Clock()
    canvas = place(MerscopeReader().sections(region, 0.0))
    (section,) = canvas.sections
    (key,) = section_keys(canvas)
    with open_work(out, {section.source.name: key}, print) as work:
        work.keep({key: section})
        for _ in read_transcripts(work, key, canvas.shape):
            pass
        found = transcripts_mark(work, key)
        assert found is not None
        genes = sorted(found.record["genes"])
        store = keep_store(work, {"genes": genes})
        BrainWriter.create(
            store_path(work, store), genes=genes, stains=("DAPI",), pixel_um=PIXEL_UM, shape=(1, 1, *canvas.shape)
        )
        for _ in write_transcripts(work, store, 0, key):
            pass
        times = clock.read()
        written = rows_mark(work, store, 0)
        assert written is not None
        return {**times, "rows": written.record["transcripts"]}


def whole_way(region: Path, out: Path, workers: int) -> dict[str, Any]:
    """The whole section into a store; transcripts of each gene, read back from it."""
    from tera_mind.geometry import Box
    from tera_mind.ingest.merscope import MerscopeReader
    from tera_mind.ingest.pipeline import ingest
    from tera_mind.ingest.placing import place

    clock = Clock()
    brain = ingest(place(MerscopeReader().sections(region, 0.0)), out, workers=workers)
    times = clock.read()
    genes = np.zeros(len(brain.genes), np.int64)
    canvas = brain.canvas
    for box in Box(0, canvas.height, 0, canvas.width).tiles(TILE, canvas.width):
        rows = brain.transcripts(0, box)
        genes += np.bincount(rows.gene, rows.count, len(genes)).astype(np.int64)
    stored = sum(file.stat().st_size for file in (out / "transcripts").rglob("*") if file.is_file())
    return {
        **times,
        "rows": int(genes.sum()),
        "genes": dict(zip(brain.genes, genes.tolist(), strict=True)),
        "bytes_a_transcript": stored / int(genes.sum()),
    }


WAYS: dict[str, Callable[[Path, Path, int], dict[str, Any]]] = {
    "pandas": pandas_way,
    "ours": transcripts_way,
    "spatialdata": spatialdata_way,
    "whole": whole_way,
}


def measured(way: str, region: Path, out: Path, workers: int = 1) -> dict[str, Any]:
    """Run a way in a process of its own; what it returns, and `peak_gb` of it and its children."""
    command = [sys.executable, __file__, "--way", way, "--region", str(region), "--out", str(out)]
    command += ["--workers", str(workers)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said)  # noqa: S603
        peak = 0
        while process.poll() is None:
            peak = max(peak, _pss(process.pid))
            time.sleep(0.5)
        said.seek(0)
        lines = said.read().decode().strip().splitlines()
    if process.returncode:
        raise SystemExit(f"{way} failed with exit code {process.returncode}")
    return {**json.loads(lines[-1]), "peak_gb": peak / 1e9}


def _pss(pid: int) -> int:
    total = 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in family:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it has just ended
    return total


def same_genes(name: str, found: dict[str, int], expected: dict[str, int]) -> None:
    """Stop unless two ways counted the same transcripts of each gene."""
    if {gene: n for gene, n in found.items() if n} != {gene: n for gene, n in expected.items() if n}:
        raise SystemExit(f"the two ways differ: {name} counts other transcripts a gene than pandas")


def compare(work: Path, size: str, workers: int) -> dict[str, Any]:
    """All ways in turns, then the whole section."""
    rows, side, share, rounds = SIZES[size]
    region = work / f"region-{rows}-{side}"
    if not (region / "made.json").exists():
        print(f"making {rows:,} transcripts and two mosaics of {side:,} px in {region}", flush=True)
        make_region(region, rows, side, share)
    part = region.with_name(region.name + "-part") if share < 1 else region
    part_rows = json.loads((region / "made.json").read_text())["part"]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        for number in range(rounds):
            for way in ("pandas", "ours", "spatialdata")[: 3 if number < SPATIALDATA_ROUNDS else 2]:
                out = Path(scratch) / f"{way}-{number}.zarr"
                results[way].append(measured(way, part if way == "spatialdata" else region, out))
                print(f"round {number + 1}, {way}: {results[way][-1]['seconds']:.1f} s", flush=True)
            _clear(Path(scratch))
        results["whole"].append(measured("whole", region, Path(scratch) / "whole.zarr", workers))
    same_genes("the store", results["whole"][0]["genes"], results["pandas"][0]["genes"])
    if part == region:
        same_genes("spatialdata", results["spatialdata"][0]["genes"], results["pandas"][0]["genes"])
    if results["ours"][0]["rows"] != rows or results["spatialdata"][0]["rows"] != part_rows:
        raise SystemExit("the two ways differ: transcripts are lost")
    return {"rows": rows, "side": side, "part_rows": part_rows, "results": results}


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def report(found: dict[str, Any], size: str, workers: int) -> dict[str, Any]:
    """Print the table; what the last line says."""
    results = found["results"]
    print(f"{'way':<12} {'rows':>11} {'seconds':>8} {'min-max':>13} {'rows/s':>10} {'processor s':>12} {'peak GB':>8}")
    pace: dict[str, np.ndarray] = {}
    for way, runs in results.items():
        seconds = np.array([run["seconds"] for run in runs])
        pace[way] = runs[0]["rows"] / seconds
        spread = f"{seconds.min():.1f}-{seconds.max():.1f}"
        peak = max(run["peak_gb"] for run in runs)
        print(
            f"{way:<12} {runs[0]['rows']:11,} {np.median(seconds):8.1f} {spread:>13} {np.median(pace[way]):10,.0f} "
            f"{np.median([run['processor_seconds'] for run in runs]):12.1f} {peak:8.2f}"
        )
    ratios = {way: pace["ours"][: len(pace[way])] / pace[way] for way in ("pandas", "spatialdata")}
    used = {way: np.array([run["processor_seconds"] for run in results[way]]) for way in ("pandas", "ours")}
    on_processor = float(np.median(used["pandas"] / used["ours"]))
    whole = results["whole"][0]
    for way, ratio in ratios.items():
        print(f"ours / {way}: {np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f}), round by round")
    print(f"ours / pandas by processor time, which other work on the machine changes less: {on_processor:.2f}")
    print(f"whole section: peak {whole['peak_gb']:.2f} GB of all processes, asked: under {ASKED_GB:g}")
    return {
        "benchmark": "ingest",
        "size": size,
        "ratio": round(float(np.median(ratios["pandas"])), 3),
        "ratio_min": round(float(ratios["pandas"].min()), 3),
        "ratio_max": round(float(ratios["pandas"].max()), 3),
        "ratio_processor": round(on_processor, 3),
        "ratio_spatialdata": round(float(np.median(ratios["spatialdata"])), 3),
        "transcripts": found["rows"],
        "side_px": found["side"],
        "spatialdata_rows": found["part_rows"],
        "whole_seconds": round(whole["seconds"], 1),
        "whole_peak_gb": round(whole["peak_gb"], 3),
        "bytes_a_transcript": round(whole["bytes_a_transcript"], 3),
        "workers": workers,
        "under_3_gb": whole["peak_gb"] < ASKED_GB,
        "peak_gb": {way: round(max(run["peak_gb"] for run in runs), 3) for way, runs in results.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1.5 million transcripts, 4,096 px")
    parser.add_argument("--tiny", action="store_true", help="a check of this script")
    parser.add_argument("--work", type=Path, help="folder that keeps the section (default: a temporary one)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="of the whole ingest")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--region", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(WAYS[options.way](options.region, options.out, options.workers)))
        return 0
    size = "tiny" if options.tiny else "quick" if options.quick else "full"
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("pandas", "pyarrow", "spatialdata-io")
    )
    print(f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores, {versions}")
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        print(json.dumps(report(compare(work, size, options.workers), size, options.workers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
