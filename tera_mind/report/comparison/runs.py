"""The runs of a comparison: found, named, and checked to be of the same tissue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tera_mind.errors import FormatError, InputError, MissingFileError
from tera_mind.report.inputs import Evaluation
from tera_mind.report.words import REFERENCES, method_label

#: settings that decide what a figure means -> how to make them agree
SAME = {
    "brain_fingerprint": "compare runs of one brain store",
    "pixel_um": "compare runs of one pixel size",
    "patch_px": "evaluate all with the same --patch-px",
    "whole_patch_px": "evaluate all with the same --patch-px",
    "window_px": "evaluate all with the same --window-px",
    "region_px": "evaluate all with the same regions",
    "blur_um": "evaluate all with the same blur",
    "nucleus_stain": "evaluate all with the same stain for nuclei",
    "nuclei": "evaluate all with the same segmenter and its settings",
}


@dataclass(frozen=True)
class Entry:
    """One line of a comparison: a method of one run, or of several runs that differ in their seed alone.

    competes: false for real tissue, which stands beside as the truth or the ceiling.
    """

    name: str
    runs: tuple[Evaluation, ...]
    method: str

    @property
    def competes(self) -> bool:
        return self.method not in REFERENCES

    def has(self, metric: str, stain: str) -> bool:
        """Whether the tables of all its runs have a row for the metric."""
        wanted = (self.method, metric, stain)
        return all(any((r["method"], r["metric"], r.get("stain") or "") == wanted for r in e.table) for e in self.runs)


def find_evaluation(path: Path) -> Path | None:
    """The folder with metrics.json that a user means: the folder, its `evaluation`, or the folder of the file."""
    if path.name == "metrics.json" and path.is_file():
        return path.parent
    return next((folder for folder in (path, path / "evaluation") if (folder / "metrics.json").is_file()), None)


def split_run(text: str) -> tuple[Path, str | None]:
    """(evaluation folder, method or None) of RUN or RUN:METHOD. Raises `MissingFileError`."""
    folder = find_evaluation(Path(text))
    if folder is not None:
        return folder, None
    head, colon, method = text.rpartition(":")
    folder = find_evaluation(Path(head)) if colon and head else None
    if folder is None:
        raise MissingFileError(
            f"no metrics.json in {text} or in its folder evaluation: give a folder that `tera-mind evaluate` wrote, "
            "or RUN:METHOD for one of its methods"
        )
    return folder, method


def short_names(places: Sequence[tuple[Path, str | None]]) -> list[str]:
    """The shortest ends of the folders' paths that differ, with `:METHOD` where one was named."""
    parts = []
    for folder, _ in places:
        whole = folder.resolve().parts[1:] or ("run",)
        parts.append(whole[:-1] if whole[-1] == "evaluation" and len(whole) > 1 else whole)
    names = []
    for own, (_, method) in zip(parts, places, strict=True):
        others = [other for other in parts if other != own]
        length = next(k for k in range(1, len(own) + 1) if k == len(own) or all(o[-k:] != own[-k:] for o in others))
        names.append("/".join(own[-length:]) + (f":{method}" if method else ""))
    return names


def load_entries(
    runs: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
    names: Sequence[str] | None = None,
    method: str = "generated",
) -> list[Entry]:
    """Read RUN or RUN:METHOD arguments and groups (name -> runs that differ in their seed) into entries.

    `method` is taken of a run for which none is named; one run alone gives an entry for each of its methods, `method`
    first. Real tissue of the first run is added as the truth and the ceiling. Raises `MissingFileError`, `FormatError`,
    or `InputError` for unknown methods, names that are not distinct, and runs that cannot be compared.
    """
    groups = {} if groups is None else groups
    places = [split_run(run) for run in runs]
    if not places and not groups:
        raise InputError("nothing to compare: give at least one RUN or --group")
    if names is not None and len(names) != len(places):
        raise InputError(f"--names needs one name a run: got {len(names)} names for {len(places)} runs")
    read: dict[Path, Evaluation] = {}
    if len(places) == 1 and not groups and places[0][1] is None and names is None:
        only = _evaluation(places[0][0], read)
        found = [m for m in only.methods if m not in REFERENCES and _has(only, m)]
        _check_method(only, method)
        ordered = [method, *(m for m in found if m != method)]
        entries = [Entry(method_label(m), (only,), m) for m in ordered]
    else:
        labels = list(names) if names is not None else short_names(places)
        entries = [
            Entry(label, (_evaluation(folder, read),), own or method)
            for label, (folder, own) in zip(labels, places, strict=True)
        ]
        entries += [_group(name, members, method, read) for name, members in groups.items()]
        for entry in entries:
            for run in entry.runs:
                _check_method(run, entry.method)
    _check_distinct(entries)
    check_same(entries)
    taken = {(run.path.resolve(), entry.method) for entry in entries for run in entry.runs}
    first = entries[0].runs[0]
    context = [
        m for m in first.methods if m in REFERENCES and _has(first, m) and (first.path.resolve(), m) not in taken
    ]
    entries += [Entry(method_label(m), (first,), m) for m in context]
    _check_distinct(entries)
    return entries


def _evaluation(folder: Path, read: dict[Path, Evaluation]) -> Evaluation:
    """A run, read once however often it is named."""
    key = folder.resolve()
    if key not in read:
        read[key] = Evaluation.read(folder)
    return read[key]


def _group(name: str, members: Sequence[str], method: str, read: dict[Path, Evaluation]) -> Entry:
    found = [split_run(member) for member in members]
    methods = {own or method for _, own in found}
    if not name or not found or len(methods) > 1:
        raise InputError(f"--group needs NAME=RUN1,RUN2,... of one method, got {name}={','.join(members)}")
    paths = [folder.resolve() for folder, _ in found]
    if len(set(paths)) < len(paths):
        raise InputError(f"group {name} names a run twice: its runs should differ in their seed")
    return Entry(name, tuple(_evaluation(folder, read) for folder, _ in found), methods.pop())


def _has(run: Evaluation, method: str) -> bool:
    return any(row["method"] == method for row in run.table)


def _check_method(run: Evaluation, method: str) -> None:
    if not _has(run, method):
        known = ", ".join(dict.fromkeys(row["method"] for row in run.table))
        raise InputError(f"{run.path} has no method {method!r}, it has {known}: name one of these")


def _check_distinct(entries: Sequence[Entry]) -> None:
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two lines would be called {', '.join(twice)}: give distinct names with --names")


def check_same(entries: Sequence[Entry]) -> None:
    """Raise `InputError` naming the first setting in which runs differ so that their figures cannot be compared."""
    runs = {run.path: (entry.name, run) for entry in entries for run in entry.runs}
    (first_name, first), *others = runs.values()
    for name, run in others:
        for key, remedy in SAME.items():
            mine, theirs = first.settings.get(key), run.settings.get(key)
            if key == "brain_fingerprint" and (mine is None or theirs is None):
                lacking = first if mine is None else run
                raise FormatError(f"{lacking.path / 'metrics.json'} does not say which brain it is of: evaluate again")
            if (fault := _difference(key, mine, theirs)) is not None:
                which, mine, theirs = fault
                raise InputError(f"{which} is {mine} in {first_name} but {theirs} in {name}: {remedy}")
        if not set(first.settings["stains"]) & set(run.settings["stains"]):
            raise InputError(f"{first_name} and {name} share no stain: compare runs of the same stains")


def _difference(key: str, first: Any, second: Any) -> tuple[str, Any, Any] | None:
    """The first setting, with a dotted name inside groups of them, that differs, and its two values."""
    if isinstance(first, dict) and isinstance(second, dict):
        inner = (_difference(f"{key}.{name}", first.get(name), second.get(name)) for name in {**first, **second})
        return next((found for found in inner if found is not None), None)
    if isinstance(first, float) and isinstance(second, int | float):
        return None if math.isclose(first, second, rel_tol=1e-6) else (key, first, second)
    return None if first == second else (key, first, second)
