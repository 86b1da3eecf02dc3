"""From section sources to a brain store, a window at a time.

Transcripts stream into one packed file a section (8 bytes each) while the panel is being learnt; then every section
is sorted by tile. Images pass twice, in windows of a shard: once for the intensity range, once to be written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.formats.atomic import atomic_directory
from tera_mind.formats.brain import Brain, BrainWriter, Section, cell_counts, cell_means
from tera_mind.formats.ome import shard_windows
from tera_mind.formats.tissue import CELL_PX, dense_cells, tissue_grid, tissue_mask
from tera_mind.formats.transcripts import MAX_GENES, merge_keys, pack_keys, replace_genes, tile_grid
from tera_mind.geometry import Box
from tera_mind.ingest.intensity import Histogram, to_uint8
from tera_mind.ingest.panel import SectionGenes, common_panel
from tera_mind.ingest.registration import pixel_size_um, resample, rows_of, scaled, to_pixels
from tera_mind.ingest.source import SectionSource, Track, no_progress

#: pixel sizes of sections that differ by less are one pixel size
_SAME_PIXEL = 1e-3
#: windows a stain and section that the intensity range is measured on
_MEASURED_WINDOWS = 64


@dataclass(frozen=True)
class _Placed:
    """A section on the canvas: its map from microns, its size in canvas pixels."""

    source: SectionSource
    um_to_canvas: NDArray[np.float64]
    shape: tuple[int, int]

    def window(self, stain: int, box: Box) -> NDArray[np.float32]:
        image = self.source.stains[stain]
        return resample(image.plane, self.um_to_canvas @ np.linalg.inv(image.um_to_px), box)


@dataclass(frozen=True)
class _Spooled:
    """Packed transcripts of a section on disk; genes are numbered by first sight."""

    path: Path
    counts: NDArray[np.int64]
    dropped: dict[str, int]

    def keys(self) -> NDArray[np.uint64]:
        return np.fromfile(self.path, np.uint64)


def ingest(
    sources: Sequence[SectionSource],
    out: Path,
    *,
    pixel_um: float | None = None,
    genes: str = "same",
    ranges: Mapping[str, tuple[float, float]] | None = None,
    max_outside: float = 0.5,
    overwrite: bool = False,
    progress: Track = no_progress,
) -> Brain:
    """Write a brain store from sections, whole or not at all, and open it.

    pixel_um: size of a canvas pixel (default: the images' own); genes: see `common_panel`; ranges: raw intensity
    (low, high) that becomes 0 and 255, by stain (default: measured); max_outside: share of a section's transcripts
    outside its image from which it is refused. Raises `InputError` and what
    the readers raise.
    """
    if out.exists() and not overwrite:
        raise InputError(f"{out} is already there; choose another --out or pass --overwrite")
    stains = _common_stains(sources)
    unknown = sorted(set(ranges or {}) - set(stains))
    if unknown:
        raise InputError(f"a range was given for stain {', '.join(unknown)}, the sections have {', '.join(stains)}")
    placed, pixel_um = _place(sources, pixel_um)
    height, width = (max(section.shape[axis] for section in placed) for axis in (0, 1))
    shape = (len(stains), len(placed), height, width)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.spool-") as spool:
        numbers: dict[str, int] = {}
        spooled = [
            _spool(section, numbers, width, Path(spool) / str(index), max_outside=max_outside, progress=progress)
            for index, section in enumerate(placed)
        ]
        panel = _panel(placed, spooled, list(numbers), genes)
        index_of = {name: index for index, name in enumerate(panel)}
        renumber = np.array([index_of.get(name, -1) for name in numbers], np.int64)
        with atomic_directory(out) as folder:
            writer = BrainWriter(
                folder, genes=panel, stains=stains, pixel_um=pixel_um, shape=shape, section_um=_spacing_um(sources)
            )
            cells = []
            sections = []
            for index, (section, spool_file) in enumerate(zip(placed, spooled, strict=True)):
                keys = spool_file.keys()
                total = len(keys)
                keys = replace_genes(keys, renumber)
                if not len(keys):
                    raise InputError(f"section {section.source.name} has no transcript left of the {len(panel)} genes")
                cells.append(cell_counts(keys, (height, width)))
                writer.write_transcripts(index, *merge_keys(keys))
                dropped = spool_file.dropped | {"gene not in the panel": total - len(keys)}
                sections.append(_record(section, len(keys), dropped))
            measured = _measure(placed, stains, shape, cells, given=ranges or {}, progress=progress)
            bounds = [measured[stain] for stain in stains]
            _write_images(writer, placed, shape, cells, ranges=bounds, progress=progress)
            writer.finish(sections, measured)
    return Brain.open(out)


def _spacing_um(sources: Sequence[SectionSource]) -> float:
    """The spacing that viewers show: OME-Zarr knows no irregular one."""
    steps = np.abs(np.diff([source.z_um for source in sources]))
    return float(np.median(steps)) if steps.any() else 10.0


def _common_stains(sources: Sequence[SectionSource]) -> list[str]:
    if not sources:
        raise InputError("a brain needs at least one section, got none")
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"every section needs its own name, {', '.join(twice)} came twice; rename a folder")
    stains = [image.name for image in sources[0].stains]
    for source in sources:
        own = [image.name for image in source.stains]
        if own != stains:
            raise InputError(
                f"section {source.name} has stains {', '.join(own)}, section {sources[0].name} has "
                f"{', '.join(stains)}; choose common ones with --stains"
            )
    return stains


def _place(sources: Sequence[SectionSource], pixel_um: float | None) -> tuple[list[_Placed], float]:
    """Put every section at the canvas' corner, its axes those of its first stain's image."""
    if pixel_um is not None and not pixel_um > 0:
        raise InputError(f"a canvas pixel needs a positive size in um, got {pixel_um:g}")
    native = [pixel_size_um(source.stains[0].um_to_px) for source in sources]
    target = native[0] if pixel_um is None else pixel_um
    placed = []
    for source, own in zip(sources, native, strict=True):
        factor = own / target
        if abs(factor - 1) < _SAME_PIXEL:
            factor = 1.0  # no resampling for a difference far below a pixel's neighbourhood
        elif pixel_um is None:
            raise InputError(
                f"section {source.name} has pixels of {own:.4g} um, section {sources[0].name} of {target:.4g} um; "
                "choose one size with --pixel-um"
            )
        first = source.stains[0]
        rows, columns = (max(1, int(np.ceil(size * factor - 1e-6))) for size in first.plane.shape)
        placed.append(_Placed(source, scaled(first.um_to_px, factor), (rows, columns)))
    return placed, target


def _spool(
    section: _Placed, numbers: dict[str, int], width: int, path: Path, *, max_outside: float, progress: Track
) -> _Spooled:
    """Stream a section's transcripts into a file of keys; `numbers` learns new genes."""
    name = section.source.name
    columns = tile_grid(1, width)[1]
    counts = np.zeros(MAX_GENES, np.int64)
    dropped: dict[str, int] = {}
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    outside = inside = 0
    with path.open("wb") as file:
        for batch in progress(section.source.batches(), f"transcripts of {name}", section.source.expected_batches):
            for reason, count in batch.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            if not len(batch.gene):
                continue
            used, gene = np.unique(batch.gene, return_inverse=True)
            lookup = np.array([numbers.setdefault(batch.names[code], len(numbers)) for code in used], np.int64)
            if len(numbers) > MAX_GENES:
                raise InputError(f"section {name} has more than {MAX_GENES} genes: is its gene column right?")
            y, x = to_pixels(section.um_to_canvas, batch.x_um, batch.y_um)
            low = np.minimum(low, [batch.x_um.min(), batch.y_um.min()])
            high = np.maximum(high, [batch.x_um.max(), batch.y_um.max()])
            kept = (y >= 0) & (y < section.shape[0]) & (x >= 0) & (x < section.shape[1])
            numbered = lookup[gene]
            # genes seen only outside the image are of the panel too
            counts += np.bincount(numbered, minlength=MAX_GENES)
            pack_keys(y[kept], x[kept], numbered[kept], columns).tofile(file)
            inside += int(kept.sum())
            outside += int((~kept).sum())
    if not inside + outside:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "the file is empty"
        raise InputError(f"section {name} has no transcripts ({reasons}); a brain needs some")
    if not inside or outside > max_outside * (inside + outside):
        raise InputError(
            f"{outside / (inside + outside):.0%} of the transcripts of section {name} lie outside its image, at most "
            f"{max_outside:.0%} may (--max-outside): they span x {low[0]:.0f}..{high[0]:.0f}, "
            f"y {low[1]:.0f}..{high[1]:.0f} um, the image {_extent(section)} um; check units, pixel size and transform"
        )
    return _Spooled(path, counts, dropped | {"outside the image": outside})


def _extent(section: _Placed) -> str:
    height, width = section.shape
    corners = np.array([[x, y, 1.0] for y in (0, height) for x in (0, width)]).T
    x, y, _ = np.linalg.inv(section.um_to_canvas) @ corners
    return f"x {x.min():.0f}..{x.max():.0f}, y {y.min():.0f}..{y.max():.0f}"


def _panel(placed: Sequence[_Placed], spooled: Sequence[_Spooled], names: Sequence[str], rule: str) -> list[str]:
    observed = [
        SectionGenes(
            section=section.source.name,
            counts={name: int(file.counts[number]) for number, name in enumerate(names) if file.counts[number]},
            declared=section.source.panel,
        )
        for section, file in zip(placed, spooled, strict=True)
    ]
    return common_panel(observed, rule)


def _record(section: _Placed, transcripts: int, dropped: Mapping[str, int]) -> Section:
    source = section.source
    return Section(
        name=source.name,
        z_um=source.z_um,
        affine_um_to_px=rows_of(section.um_to_canvas),
        transcripts=transcripts,
        dropped={reason: count for reason, count in dropped.items() if count},
        source=source.provenance,
    )


def _windows(
    placed: Sequence[_Placed], shape: tuple[int, int, int, int], every: int = 1
) -> Iterator[tuple[int, int, Box]]:
    """(section, stain, window) in writing order; `every` leaves windows out."""
    boxes = list(shard_windows(shape))[::every]
    for index in range(len(placed)):
        for stain in range(shape[0]):
            for box in boxes:
                yield index, stain, box


def _measure(
    placed: Sequence[_Placed],
    stains: Sequence[str],
    shape: tuple[int, int, int, int],
    cells: Sequence[NDArray[np.int64]],
    *,
    given: Mapping[str, tuple[float, float]],
    progress: Track,
) -> dict[str, tuple[float, float]]:
    """Raw intensities that become 0 and 255, by stain: as given, or measured over all sections."""
    histograms = {stain: Histogram() for stain in stains if stain not in given}
    if histograms:
        dense = [dense_cells(counts) for counts in cells]
        boxes = len(list(shard_windows(shape)))
        every = -(-boxes // _MEASURED_WINDOWS)
        todo = [item for item in _windows(placed, shape, every) if stains[item[1]] in histograms]
        for index, stain, box in progress(todo, "measuring intensities", len(todo)):
            tissue = dense[index][box.y0 // CELL_PX : -(-box.y1 // CELL_PX), box.x0 // CELL_PX : -(-box.x1 // CELL_PX)]
            histograms[stains[stain]].add(placed[index].window(stain, box), tissue)
    return {stain: given[stain] if stain in given else histograms[stain].range(stain) for stain in stains}


def _write_images(
    writer: BrainWriter,
    placed: Sequence[_Placed],
    shape: tuple[int, int, int, int],
    cells: Sequence[NDArray[np.int64]],
    *,
    ranges: Sequence[tuple[float, float]],
    progress: Track,
) -> None:
    """Write images window by window and, of every section, the tissue mask."""
    todo = list(_windows(placed, shape))
    brightness = [np.zeros(counts.shape, np.float32) for counts in cells]
    for index, stain, box in progress(todo, "writing images", len(todo)):
        window = to_uint8(placed[index].window(stain, box), ranges[stain])
        writer.write_image(stain, index, box, window)
        if stain == 0:
            means = cell_means(window)
            y, x = box.y0 // CELL_PX, box.x0 // CELL_PX
            brightness[index][y : y + means.shape[0], x : x + means.shape[1]] = means
    for index, (counts, means) in enumerate(zip(cells, brightness, strict=True)):
        mask = tissue_mask(counts, means)
        rows, columns = tissue_grid(*placed[index].shape)
        mask[rows:], mask[:, columns:] = False, False  # smoothing must not reach beyond the section's own image
        writer.write_tissue(index, mask)
