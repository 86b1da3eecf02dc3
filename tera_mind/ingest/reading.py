"""What is read of a section before the panel and the ranges are known: transcripts, and intensities of a stain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.ome import shard_windows
from tera_mind.formats.tissue import CELL_PX, dense_cells, tissue_grid
from tera_mind.formats.transcripts import MAX_GENES, pack_keys, tile_grid
from tera_mind.geometry import Box
from tera_mind.ingest.intensity import Histogram
from tera_mind.ingest.placing import Placed
from tera_mind.ingest.source import expanded
from tera_mind.ingest.spool import Spool, SpoolWriter
from tera_mind.ingest.work import Mark, Work, read_mark, write_mark

#: windows a stain and section that the intensity range is measured on
_MEASURED_WINDOWS = 64
#: reason under which `Placed.locate` counts what a wrong transform produces
OUTSIDE = "outside the image"


def spool_path(work: Work, key: str) -> Path:
    """The sorted runs of a section's transcripts."""
    return work.section(key) / "transcripts.bin"


def transcripts_mark(work: Work, key: str) -> Mark | None:
    """What `read_transcripts` found, None before it has finished."""
    return read_mark(work.section(key) / "transcripts.npz", spool_path(work, key))


def intensities_mark(work: Work, key: str, stain: int) -> Mark | None:
    """What `measure_stain` found, None before it has finished."""
    return read_mark(work.section(key) / f"intensities-{stain}.npz")


def read_transcripts(work: Work, key: str, shape: tuple[int, int]) -> Iterator[None]:
    """Stream a section's transcripts to the canvas and into sorted runs; genes are numbered by first sight.

    A task: yields after every batch.
    """
    work.check()
    placed = work.placed(key)
    grid = tile_grid(*shape)
    numbers: dict[str, int] = {}
    counts = np.zeros(MAX_GENES, np.int64)
    dropped: dict[str, int] = {}
    respelled: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    with closing(SpoolWriter(spool_path(work, key), grid)) as spool:
        for batch in () if placed.missing else expanded(placed.source.batches()):
            yield
            work.check()
            _add(dropped, batch.dropped)
            _add(respelled, batch.respelled)
            spans = dict(batch.spans) | spans
            if not len(batch.gene):
                continue
            seen = np.bincount(batch.gene, minlength=len(batch.names))
            codes = np.flatnonzero(seen)
            # new ones in the order that they will have in the panel, mostly: what is sorted now stays nearly so
            for name in sorted({batch.names[code] for code in codes.tolist()} - numbers.keys()):
                numbers[name] = len(numbers)
            if len(numbers) > MAX_GENES:
                raise InputError(
                    f"section {placed.source.name} has more than {MAX_GENES} genes: is its gene column right?"
                )
            lookup = np.zeros(len(seen), np.uint16)
            lookup[codes] = [numbers[batch.names[code]] for code in codes.tolist()]
            np.add.at(counts, lookup[codes], seen[codes])  # genes seen only outside the image are of the panel too
            low = np.minimum(low, [batch.x_um.min(), batch.y_um.min()])
            high = np.maximum(high, [batch.x_um.max(), batch.y_um.max()])
            there = placed.locate(batch.x_um, batch.y_um)
            _add(dropped, there.dropped)
            y, x, gene = there.y, there.x, lookup[batch.gene]
            if not there.kept.all():
                y, x, gene = y[there.kept], x[there.kept], gene[there.kept]
            spool.append(pack_keys(y, x, gene, grid[1]))
    record = {
        "genes": list(numbers),
        "dropped": dropped,
        "respelled": respelled,
        "spans": spans,
        "extent_um": None if np.isinf(low).any() else [*low.tolist(), *high.tolist()],
    }
    write_mark(
        work.section(key) / "transcripts.npz", record, spool_path(work, key),
        counts=counts[: len(numbers)], runs=np.array(spool.runs, np.int64), cells=spool.cells,
    )  # fmt: skip


def measure_stain(work: Work, key: str, stain: int, shape: tuple[int, int]) -> Iterator[None]:
    """Count a stain's raw intensities in windows spread over the section, apart for tissue; yields for every one."""
    work.check()
    placed = work.placed(key)
    histogram = Histogram()
    dense = dense_cells(read_spool(work, key)[1].cells)[tuple(slice(size) for size in tissue_grid(*shape))]
    own = Box(0, placed.shape[0], 0, placed.shape[1])
    for box in () if placed.missing else measured_windows(shape):
        yield
        work.check()
        if not own.intersect(box).is_empty:
            tissue = dense[box.y0 // CELL_PX : -(-box.y1 // CELL_PX), box.x0 // CELL_PX : -(-box.x1 // CELL_PX)]
            histogram.add(placed.window(stain, box), tissue)
    write_mark(work.section(key) / f"intensities-{stain}.npz", {}, None, counts=histogram.counts)


def measured_windows(shape: tuple[int, int]) -> list[Box]:
    """The windows that intensities are measured in."""
    boxes = list(shard_windows(shape))
    return boxes[:: -(-len(boxes) // _MEASURED_WINDOWS)]


def read_spool(work: Work, key: str) -> tuple[Mark, Spool]:
    """What `read_transcripts` found and wrote."""
    mark = transcripts_mark(work, key)
    if mark is None:
        raise FormatError(f"{spool_path(work, key)} is not whole any more; run the same command again")
    return mark, Spool(spool_path(work, key), mark.arrays["runs"], mark.arrays["cells"])


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for reason, count in more.items():
        total[reason] = total.get(reason, 0) + count


def check_section(placed: Placed, found: Mark, max_outside: float) -> None:
    """Refuse a section without transcripts, or with too many outside its image. Raises `InputError`."""
    if placed.missing:
        return
    name, dropped = placed.source.name, found.record["dropped"]
    total = int(found.arrays["counts"].sum())
    if not total:
        raise InputError(f"section {name} has no transcripts ({_said(dropped)}); a brain needs some")
    outside = dropped.get(OUTSIDE, 0)
    if outside == total or outside > max_outside * total:
        x0, y0, x1, y1 = found.record["extent_um"]
        raise InputError(
            f"{outside / total:.0%} of the transcripts of section {name} lie outside its image, at most "
            f"{max_outside:.0%} may (--max-outside): they span x {x0:.0f}..{x1:.0f}, "
            f"y {y0:.0f}..{y1:.0f} um, the image {_extent(placed)} um; check units, pixel size and transform"
        )
    if not int(found.arrays["runs"].sum()):
        raise InputError(
            f"no transcript of section {name} lies on the canvas ({_said(dropped)}); check its row of the table of "
            "sections, and the canvas' pixel size"
        )


def _said(dropped: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "its table holds none"


def _extent(placed: Placed) -> str:
    """Microns that the first stain's image covers."""
    image = placed.source.stains[0]
    height, width = image.plane.shape
    corners = np.array([[x, y, 1.0] for y in (0, height) for x in (0, width)]).T
    x, y, _ = np.linalg.inv(image.um_to_px) @ corners
    return f"x {x.min():.0f}..{x.max():.0f}, y {y.min():.0f}..{y.max():.0f}"
