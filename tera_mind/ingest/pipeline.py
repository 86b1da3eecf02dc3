"""From sections on a canvas to a brain store: a graph of tasks over a work folder, so that an interrupted run goes on.

First every section is read once: transcripts into sorted runs on disk, intensities into histograms. Then panel and
ranges are known, and every section is written: transcripts band by band, images by rows of windows, tissue and
pyramid. At last the attributes are written and the folder is renamed to the output. Each finished task leaves a
mark; a rerun does those without one. The store's bytes depend on the sources and settings alone.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.formats.atomic import atomic_directory, fsync_path, put_in_place, sweep
from tera_mind.formats.brain import Brain, BrainWriter, Section
from tera_mind.formats.replaceable import check_replaceable
from tera_mind.ingest.fingerprint import files_of
from tera_mind.ingest.intensity import intensity_range
from tera_mind.ingest.panel import SectionGenes, check_rule, common_panel, respelled_words
from tera_mind.ingest.placing import Canvas, Placed
from tera_mind.ingest.plan import plan_ingest
from tera_mind.ingest.reading import (
    check_section,
    intensities_mark,
    measure_stain,
    measured_windows,
    read_transcripts,
    transcripts_mark,
)
from tera_mind.ingest.registration import rows_of
from tera_mind.ingest.source import Track, known_levels, no_progress
from tera_mind.ingest.tasks import Runner, Task, runner
from tera_mind.ingest.work import Mark, Say, Work, keep_store, open_work, section_keys, work_folder
from tera_mind.ingest.writing import (
    band_mark,
    bands,
    rows_mark,
    seal_section,
    section_mark,
    store_path,
    write_band,
    write_transcripts,
)

Ranges = Mapping[str, tuple[float, float]]


def _silent(line: str) -> None:
    del line


def ingest(
    canvas: Canvas,
    out: Path,
    *,
    genes: str = "same",
    ranges: Ranges | None = None,
    max_outside: float = 0.5,
    workers: int = 1,
    scheduler: str | None = None,
    overwrite: bool = False,
    progress: Track = no_progress,
    say: Say = _silent,
) -> Brain:
    """Write a brain store, whole or not at all, and open it; what an interrupted run of the same output left is used.

    genes: see `common_panel`; ranges: raw intensity (low, high) that becomes 0 and 255, by stain (default: what the
    images say of themselves, else measured); max_outside: share of a section's transcripts outside its image from
    which it is refused; workers: processes of this machine (up to 1: this one); scheduler: address of a running Dask
    scheduler instead; say: takes lines about an interrupted run. Raises `InputError` and what the readers raise; what
    has been read until then is kept beside the output for the next run.
    """
    if out.parent.is_dir():
        sweep(out)  # a store that was put aside for a new one, by a process that then died, comes back
    if out.exists() and not overwrite:
        raise InputError(f"{out} is already there; choose another --out or pass --overwrite")
    check_replaceable(out, ("brain",), files_of(canvas))
    check_rule(genes)
    out = out.absolute()  # workers may run elsewhere
    stains = check_inputs(canvas, ranges or {})
    given = known_levels(placed.source for placed in canvas.sections) | dict(ranges or {})
    plan_ingest(canvas, out).check(out)
    keys = section_keys(canvas)
    names = [placed.source.name for placed in canvas.sections]
    out.parent.mkdir(parents=True, exist_ok=True)
    with _space_explained(out), open_work(out, dict(zip(names, keys, strict=True)), say) as work:
        work.keep(dict(zip(keys, canvas.sections, strict=True)))
        job = _Job(canvas, stains, tuple(keys), work, progress)
        with runner(workers, scheduler) as run:
            found = job.read(run, [stain for stain in stains if stain not in given], max_outside, say)
            observed = [_genes(placed, mark) for placed, mark in zip(canvas.sections, found, strict=True)]
            panel = common_panel([seen for seen in observed if seen is not None], genes)
            bounds = {stain: given[stain] if stain in given else job.range(stain) for stain in stains}
            store = job.start(panel, bounds)
            sealed = job.write(run, store)
        job.finish(store, sealed, bounds, out)
        shutil.rmtree(work.folder, ignore_errors=True)
    return Brain.open(out)


@contextmanager
def _space_explained(out: Path) -> Iterator[None]:
    """A full disk or quota names the path and what to do; what is done until then is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)} for {error.filename or out} (unfinished: {work_folder(out)}); free space and "
            "run the same command again to go on",
        ) from error


def check_inputs(canvas: Canvas, ranges: Ranges) -> tuple[str, ...]:
    """The stains that all sections have. Raises `InputError` where sections or ranges do not fit together."""
    stains = _common_stains(canvas)
    unknown = sorted(set(ranges) - set(stains))
    if unknown:
        raise InputError(f"a range was given for stain {', '.join(unknown)}, the sections have {', '.join(stains)}")
    known = known_levels(placed.source for placed in canvas.sections)
    for stain, (low, high) in {**known, **ranges}.items():
        if not 0 <= low < high < np.inf:  # what lies outside an image is 0 and stays it
            raise InputError(f"the range of stain {stain} should be 0 <= low < high, got {low:g}, {high:g}")
    return stains


def _common_stains(canvas: Canvas) -> tuple[str, ...]:
    if not canvas.sections:
        raise InputError("a brain needs at least one section, got none")
    present = [placed for placed in canvas.sections if not placed.missing]
    if not present:
        raise InputError("there is no data of any section: are the folders the right ones?")
    names = [placed.source.name for placed in canvas.sections]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"every section needs its own name, {', '.join(twice)} came twice; rename a folder")
    first = present[0].source
    stains = [image.name for image in first.stains]
    for source in (placed.source for placed in present):
        own = [image.name for image in source.stains]
        if own != stains:
            raise InputError(
                f"section {source.name} has stains {', '.join(own)}, section {first.name} has "
                f"{', '.join(stains)}; choose common ones with --stains"
            )
    return tuple(stains)


def _genes(placed: Placed, mark: Mark) -> SectionGenes | None:
    """What a section says about the panel; nothing where there is no data of it."""
    if placed.missing:
        return None
    counts = dict(zip(mark.record["genes"], mark.arrays["counts"].tolist(), strict=True))
    return SectionGenes(placed.source.name, counts, placed.source.panel)


def _spacing_um(sections: Sequence[Placed]) -> float:
    """The spacing that viewers show: OME-Zarr knows no irregular one."""
    steps = np.abs(np.diff([placed.source.z_um for placed in sections]))
    return float(np.median(steps)) if steps.any() else 10.0


@dataclass(frozen=True)
class _Job:
    """An ingest under way: which tasks there are, which are left."""

    canvas: Canvas
    stains: tuple[str, ...]
    keys: tuple[str, ...]
    work: Work
    progress: Track

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(stain, section, height, width)."""
        return (len(self.stains), len(self.keys), *self.canvas.shape)

    def read(self, run: Runner, measured: Sequence[str], max_outside: float, say: Say) -> list[Mark]:
        """Read every section that has not been read; what was found, by section."""
        tasks = []
        before = [transcripts_mark(self.work, key) for key in self.keys]
        done = sum(mark is not None for mark in before)
        if done:
            say(f"going on with an interrupted run: {done} of {len(before)} sections are read")
        for placed, key, mark in zip(self.canvas.sections, self.keys, before, strict=True):
            if mark is None:
                steps = placed.source.expected_batches or 1
                arguments = (self.work, key, self.canvas.shape)
                tasks.append(Task(f"transcripts {key}", read_transcripts, arguments, steps=max(1, steps)))
            else:
                check_section(placed, mark, max_outside)
            tasks += [
                Task(
                    f"intensities {key} {stain}", measure_stain, (self.work, key, stain, self.canvas.shape),
                    (f"transcripts {key}",), len(measured_windows(self.canvas.shape)),
                )
                for stain, name in enumerate(self.stains)
                if name in measured and intensities_mark(self.work, key, stain) is None
            ]  # fmt: skip
        found = dict(zip(self.keys, before, strict=True))
        sections = dict(zip(self.keys, self.canvas.sections, strict=True))
        for name in self.progress(run.run(tasks), "reading sections", sum(task.steps for task in tasks)):
            if name.startswith("transcripts "):
                key = name.split()[1]
                found[key] = transcripts_mark(self.work, key)
                check_section(sections[key], _there(found[key]), max_outside)
        return [_there(found[key]) for key in self.keys]

    def range(self, stain: str) -> tuple[float, float]:
        """The measured range of a stain over all sections."""
        number = self.stains.index(stain)
        marks = (_there(intensities_mark(self.work, key, number)) for key in self.keys)
        return intensity_range(stain, (mark.arrays["counts"] for mark in marks))

    def start(self, panel: Sequence[str], bounds: Ranges) -> str:
        """The unfinished store of this panel and these ranges: that of an interrupted run, or a new one."""
        spacing_um = _spacing_um(self.canvas.sections)
        facts = {
            "genes": list(panel),
            "stains": list(self.stains),
            "ranges": [list(bounds[stain]) for stain in self.stains],
            "pixel_um": self.canvas.pixel_um,
            "shape": list(self.shape),
            "section_um": spacing_um,
            "sections": list(self.keys),
        }
        store = keep_store(self.work, facts)
        if not _is_store(store_path(self.work, store)):
            shutil.rmtree(self.work.store(store) / "marks", ignore_errors=True)
            with atomic_directory(store_path(self.work, store)) as folder:
                BrainWriter.create(
                    folder, genes=panel, stains=self.stains, pixel_um=self.canvas.pixel_um, shape=self.shape,
                    section_um=spacing_um,
                )  # fmt: skip
        return store

    def write(self, run: Runner, store: str) -> list[Mark]:
        """Write every section that has not been written; what was found, by section."""
        tasks: list[Task] = []
        for index, key in enumerate(self.keys):
            if section_mark(self.work, store, index) is None:
                tasks += self._section_tasks(store, index, key)
        for _ in self.progress(run.run(tasks), "writing sections", sum(task.steps for task in tasks)):
            pass
        return [_there(section_mark(self.work, store, index)) for index in range(len(self.keys))]

    def _section_tasks(self, store: str, index: int, key: str) -> list[Task]:
        tasks: list[Task] = []

        def add(name: str, function: Callable[..., Iterator[None]], *more: int, steps: int = 1) -> None:
            tasks.append(Task(f"{name} {key}", function, (self.work, store, index, key, *more), steps=steps))

        if rows_mark(self.work, store, index) is None:
            add("rows", write_transcripts)
        for stain in range(len(self.stains)):
            for band, boxes in enumerate(bands(self.shape)):
                if band_mark(self.work, store, index, stain, band) is None:
                    add(f"image {stain} {band}", write_band, stain, band, steps=len(boxes))
        before = tuple(task.name for task in tasks)
        return [*tasks, Task(f"seal {key}", seal_section, (self.work, store, index, key), before)]

    def finish(self, store: str, sealed: Sequence[Mark], bounds: Ranges, out: Path) -> None:
        """Write the attributes and put the store in its place, unless a later run is at it."""
        self.work.check()
        records = []
        for placed, mark in zip(self.canvas.sections, sealed, strict=True):
            if not placed.missing and not mark.record["transcripts"]:
                raise InputError(f"section {placed.source.name} has no transcript left of the panel's genes")
            records.append(_record(placed, mark))
        path = store_path(self.work, store)
        if not _is_finished(path):
            BrainWriter.resume(path).finish(records, dict(bounds))
        for file in path.rglob("zarr.json"):
            fsync_path(file)
        fsync_path(path)
        put_in_place(path, out)


def _is_finished(path: Path) -> bool:
    """Whether the attributes were written by a run that died before it could move the store."""
    try:
        Brain.open(path)
    except (FormatError, MissingFileError):
        return False
    return True


def _is_store(path: Path) -> bool:
    """Whether an interrupted run's store can be gone on with."""
    try:
        BrainWriter.resume(path)
    except (FormatError, MissingFileError):
        return _is_finished(path)
    return True


def _record(placed: Placed, mark: Mark) -> Section:
    source, record = placed.source, mark.record
    dropped = record["dropped"] | {"gene not in the panel": record["left_out"]}
    more = {"genes_absent": record["genes_absent"]} if record["genes_absent"] else {}
    if record["spans"]:
        more["dropped_rows"] = {reason: list(span) for reason, span in record["spans"].items()}
    if record["respelled"]:
        more["notices"] = [*source.provenance.get("notices", []), respelled_words(record["respelled"])]
    return Section(
        name=source.name,
        z_um=source.z_um,
        affine_um_to_px=rows_of(placed.registration.um_to_canvas),
        transcripts=record["transcripts"],
        dropped={reason: count for reason, count in dropped.items() if count},
        source=source.provenance | more,
        sha256=record["sha256"],
    )


def _there(mark: Mark | None) -> Mark:
    if mark is None:
        raise InputError("a result in the work folder is torn; run the same command again")
    return mark
