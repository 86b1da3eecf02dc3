"""What is written of a section once panel and ranges are known: transcripts, bands of windows, tissue and pyramid.

Every task writes files of its own, from what `tera_mind.ingest.reading` left and the store's facts alone, so that the
bytes depend neither on who writes nor on how often it was begun. Tasks are generators that yield at every step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.brain_writer import BrainWriter, cell_means
from tera_mind.formats.ome import shard_windows
from tera_mind.formats.tissue import CELL_PX, tissue_grid, tissue_mask
from tera_mind.formats.transcripts import merge_keys, replace_genes
from tera_mind.geometry import Box
from tera_mind.ingest.intensity import to_uint8
from tera_mind.ingest.reading import read_spool
from tera_mind.ingest.work import Mark, Work, make_durable, read_mark, write_mark


def store_path(work: Work, store: str) -> Path:
    """The unfinished store."""
    return work.store(store) / "brain.zarr"


def _marks(work: Work, store: str) -> Path:
    return work.store(store) / "marks"


def bands(shape: tuple[int, ...]) -> list[list[Box]]:
    """The windows of a plane, a list for each row of them: a task writes one row of one stain."""
    rows: dict[int, list[Box]] = {}
    for box in shard_windows(shape):
        rows.setdefault(box.y0, []).append(box)
    return list(rows.values())


def rows_mark(work: Work, store: str, section: int) -> Mark | None:
    """What `write_transcripts` wrote, None before it has finished."""
    data = store_path(work, store) / "transcripts" / str(section)
    return read_mark(_marks(work, store) / f"transcripts-{section}.npz", data)


def _band_folder(work: Work, store: str, section: int, stain: int, band: int) -> Path:
    """Where zarr keeps the shards of a row of windows."""
    return store_path(work, store) / "images" / "0" / "c" / str(stain) / str(section) / str(band)


def band_mark(work: Work, store: str, section: int, stain: int, band: int) -> Mark | None:
    """What `write_band` wrote, None before it has finished."""
    data = _band_folder(work, store, section, stain, band)
    return read_mark(_marks(work, store) / f"image-{section}-{stain}-{band}.npz", data)


def section_mark(work: Work, store: str, section: int) -> Mark | None:
    """What `seal_section` found, None before it has finished."""
    return read_mark(_marks(work, store) / f"section-{section}.npz")


def _facts(work: Work, store: str) -> dict[str, Any]:
    return dict(json.loads((work.store(store) / "facts.json").read_text(encoding="utf-8")))


def write_transcripts(work: Work, store: str, section: int, key: str) -> Iterator[None]:
    """Renumber the genes of a section's sorted runs, sort again band by band, and write them."""
    work.check()
    mark, spool = read_spool(work, key)
    panel, genes = _facts(work, store)["genes"], mark.record["genes"]
    number_of = {name.casefold(): number for number, name in enumerate(panel)}
    renumber = np.array([number_of.get(name.casefold(), -1) for name in genes], np.int64)
    respelled = dict(mark.record["respelled"])
    for name, number, count in zip(genes, renumber.tolist(), mark.arrays["counts"].tolist(), strict=True):
        if number >= 0 and name != panel[number]:
            respelled[name] = respelled.get(name, 0) + count
    writer = BrainWriter.resume(store_path(work, store)).section_writer(section)
    kept = 0
    for band in spool.bands():
        yield
        work.check()
        keys = replace_genes(band, renumber)
        kept += len(keys)
        try:
            writer.append(*merge_keys(keys))
        except InputError as error:
            raise InputError(f"section {work.placed(key).source.name}: {error}") from None
    digest = writer.finish()
    absent = len(number_of) - len(np.unique(renumber[renumber >= 0]))
    left_out = int(spool.runs.sum()) - kept
    record = {
        "transcripts": kept, "left_out": left_out, "rows": digest, "genes_absent": absent, "respelled": respelled,
    }  # fmt: skip
    data = store_path(work, store) / "transcripts" / str(section)
    write_mark(_marks(work, store) / f"transcripts-{section}.npz", record, data)


def write_band(work: Work, store: str, section: int, key: str, stain: int, band: int) -> Iterator[None]:
    """Write a row of windows of one stain in 8 bits."""
    work.check()
    facts = _facts(work, store)
    placed, bounds = work.placed(key), tuple(facts["ranges"][stain])
    folder = _band_folder(work, store, section, stain, band)
    shutil.rmtree(folder, ignore_errors=True)  # a shard that was torn must not be merged into the new one
    writer = BrainWriter.resume(store_path(work, store))
    own = Box(0, placed.shape[0], 0, placed.shape[1])
    digests: dict[str, str] = {}
    means: dict[str, Any] = {}
    for box in bands(writer.shape)[band]:
        yield
        work.check()
        if placed.missing or own.intersect(box).is_empty:
            continue  # zeros are not stored
        window = to_uint8(placed.window(stain, box), bounds)
        digests[str(box)] = writer.write_image(stain, section, box, window)
        if stain == 0:
            means[str(box)] = cell_means(window)
    mark = _marks(work, store) / f"image-{section}-{stain}-{band}.npz"
    write_mark(mark, {"digests": digests}, folder, **means)


def seal_section(work: Work, store: str, section: int, key: str) -> Iterator[None]:
    """Write a section's tissue mask, pyramid and checksums, when all its windows and transcripts are there."""
    work.check()
    writer = BrainWriter.resume(store_path(work, store))
    rows = rows_mark(work, store, section)
    found, spool = read_spool(work, key)
    cells = spool.cells[tuple(slice(size) for size in tissue_grid(*writer.shape[2:]))]
    brightness = np.zeros(cells.shape, np.float32)
    digests: dict[tuple[int, Box], str] = {}
    for stain in range(writer.shape[0]):
        for band, boxes in enumerate(bands(writer.shape)):
            mark = band_mark(work, store, section, stain, band)
            if mark is None or rows is None:
                raise FormatError(f"{store_path(work, store)} is not whole any more; run the same command again")
            of_name = {str(box): box for box in boxes}
            digests |= {(stain, of_name[name]): digest for name, digest in mark.record["digests"].items()}
            for name, means in mark.arrays.items():
                y, x = of_name[name].y0 // CELL_PX, of_name[name].x0 // CELL_PX
                brightness[y : y + means.shape[0], x : x + means.shape[1]] = means
    mask = tissue_mask(cells, brightness)
    extent = tissue_grid(*work.placed(key).shape)
    mask[extent[0] :], mask[:, extent[1] :] = False, False  # smoothing must not reach beyond the section's own image
    writer.write_tissue(section, mask)
    planes = _coarse_planes(store_path(work, store), writer.shape[0], section)
    for folder in planes:
        shutil.rmtree(folder, ignore_errors=True)  # as in `write_band`
    for stain in range(writer.shape[0]):
        yield
        work.check()
        writer.build_section_pyramid(stain, section)
    assert rows is not None
    sha256 = writer.seal_section(section, digests, str(rows.record["rows"]))
    path = store_path(work, store)
    for folder in [*planes, path / "tissue" / "c" / str(section), path / "checksums" / "c" / str(section)]:
        if folder.exists():
            make_durable(folder, path)
    record = {**rows.record, "dropped": found.record["dropped"], "spans": found.record["spans"], "sha256": sha256}
    write_mark(_marks(work, store) / f"section-{section}.npz", record)


def _coarse_planes(path: Path, stains: int, section: int) -> list[Path]:
    """Folders of the shards of a section's coarser levels."""
    levels = [level for level in (path / "images").iterdir() if level.name.isdigit() and level.name != "0"]
    return [level / "c" / str(stain) / str(section) for level in levels for stain in range(stains)]
