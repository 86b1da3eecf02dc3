"""The places (patches, windows, regions) that all runs of a comparison share, and their scores there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError
from tera_mind.report.comparison.runs import Entry
from tera_mind.report.glossary import NUCLEUS
from tera_mind.report.inputs import Evaluation

#: patch metric -> the array of places it belongs to
PATCH_METRICS = {
    **dict.fromkeys(("psnr", "ssim", "psnr_blur", "ssim_blur", "pearson_blur"), "patch_boxes"),
    "ms_ssim": "large_boxes",
}
#: arrays of places -> what they are called
PLACES = {
    "patch_boxes": "patches",
    "large_boxes": "large squares",
    "window_boxes": "windows",
    "region_boxes": "regions",
}

#: section, y0, y1, x0, x1 of each place, in canvas pixels
Boxes = Int[np.ndarray, "_ 5"]


@dataclass(frozen=True)
class Sample:
    """One metric of all entries on the same places.

    values: entry -> (seed, place), NaN where undefined; real: (place,) of what values are correlated with, or None
    where the metric is their mean; better: "higher" or "lower"; own: entries that have no other places than these.
    """

    metric: str
    stain: str
    better: Literal["higher", "lower"]
    boxes: Boxes
    values: Mapping[str, Float[np.ndarray, "seed place"]]
    real: Float[np.ndarray, " place"] | None
    own: frozenset[str]


class Aligned:
    """Arrays of runs at the places that all have. Raises `InputError` where the runs share no patch."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = [entry for entry in entries if entry.competes]
        runs = list({run.path: run for entry in self.entries for run in entry.runs}.values())
        own = {name: {run.path: _boxes(run, name) for run in runs} for name in PLACES}
        self.totals = {name: {path: len(boxes) for path, boxes in found.items()} for name, found in own.items()}
        self.boxes: dict[str, Boxes] = {}
        #: (places, run) -> where the common places stand in the run's own order
        self._order: dict[tuple[str, Path], NDArray[np.int64]] = {}
        for name, found in own.items():
            self.boxes[name], orders = common_places(list(found.values()))
            self._order |= {(name, path): order for path, order in zip(found, orders, strict=True)}
        if runs and not len(self.boxes["patch_boxes"]):
            regions = "; ".join(f"{run.path}: {run.settings.get('test_box')}" for run in runs)
            raise InputError(
                f"the runs have no patch in common, so they cannot be compared place by place ({regions}): evaluate "
                "them on the same region, and with the same patch grid"
            )

    @property
    def notes(self) -> list[str]:
        """What a reader must know about the places: one sentence for each kind that is not shared whole."""
        found = []
        for name, common in self.boxes.items():
            most = max(self.totals[name].values(), default=0)
            if len(common) < most:
                found.append(
                    f"The runs share {len(common):,} of up to {most:,} {PLACES[name]}: scores and tests there use the "
                    "shared ones; pooled metrics (distances of distributions, seams) are of each run's own region."
                )
        return found

    @cached_property
    def samples(self) -> list[Sample]:
        """Every metric that is made of places, in the order of tables."""
        found: list[Sample | None] = []
        stains = dict.fromkeys(str(s) for entry in self.entries for run in entry.runs for s in run.settings["stains"])
        for metric, places in PATCH_METRICS.items():
            found += [self._sample(metric, stain, places, metric, f"/{stain}") for stain in stains]
        nuclei = next((str(s) for e in self.entries for r in e.runs if (s := r.settings.get("nucleus_stain"))), "")
        found.append(self._sample("nuclei_count_error", nuclei, "window_boxes", "window_counts", against="error"))
        for kind, count, name in (("window", "nuclei_count", "nucleus"), ("region", "region_count", "region")):
            arrays = {f"{count}_r": f"{kind}_counts"} | {f"{name}_{q}_r": f"{kind}_{q}" for q in NUCLEUS}
            for metric, array in arrays.items():
                found.append(self._sample(metric, nuclei, f"{kind}_boxes", array, against="correlation"))
        return [sample for sample in found if sample is not None]

    def _sample(
        self,
        metric: str,
        stain: str,
        places: str,
        array: str,
        suffix: str = "",
        *,
        against: Literal["", "correlation", "error"] = "",
    ) -> Sample | None:
        """One metric; None where no entry has it in its table or there are no common places.

        against: how the metric comes from the array and the real one; "" where the array holds the metric itself.
        """
        boxes, values, own = self.boxes[places], {}, set()
        truth = self._truth(places, array) if against else None
        if not len(boxes) or (against and truth is None):
            return None
        for entry in self.entries:
            rows = [self._at(run, places, f"{array}/{entry.method}{suffix}") for run in entry.runs]
            if entry.has(metric, stain) and all(row is not None for row in rows):
                values[entry.name] = np.stack([row for row in rows if row is not None])
                if all(self.totals[places][run.path] == len(boxes) for run in entry.runs):
                    own.add(entry.name)
        if not values:
            return None
        if against == "error" and truth is not None:
            values = {name: np.abs(rows - truth) for name, rows in values.items()}
        real = truth if against == "correlation" else None
        better: Literal["higher", "lower"] = "lower" if against == "error" else "higher"
        return Sample(metric, stain, better, boxes, values, real, frozenset(own))

    def _truth(self, places: str, array: str) -> NDArray[np.float64] | None:
        """The real array, which must be the same in all runs: it is of the same tissue."""
        first: tuple[Path, NDArray[np.float64]] | None = None
        for entry in self.entries:
            for run in entry.runs:
                found = self._at(run, places, f"{array}/real")
                if found is None:
                    continue
                if first is None:
                    first = run.path, found
                elif not np.allclose(first[1], found, rtol=1e-5, atol=1e-6, equal_nan=True):
                    raise InputError(
                        f"{first[0]} and {run.path} measured the same real tissue differently ({array}): evaluate both "
                        "with this version and the same settings"
                    )
        return None if first is None else first[1]

    def _at(self, run: Evaluation, places: str, array: str) -> NDArray[np.float64] | None:
        """An array of a run at the common places, in their order."""
        if array not in run.arrays:
            return None
        values, total = run.arrays[array], self.totals[places][run.path]
        if values.shape != (total,):
            raise FormatError(
                f"{run.path / 'arrays.npz'}: {array} should have {total} values, as {places}, has {values.shape}: "
                "evaluate again"
            )
        return np.asarray(values[self._order[places, run.path]], np.float64)


def _boxes(run: Evaluation, name: str) -> Boxes:
    found = run.arrays[name] if name in run.arrays else np.zeros((0, 5), np.int64)
    if found.ndim != 2 or found.shape[1] != 5:
        raise FormatError(f"{run.path / 'arrays.npz'}: {name} should be (n, 5), is {found.shape}: evaluate again")
    return np.asarray(found, np.int64)


def common_places(own: Sequence[Boxes]) -> tuple[Boxes, list[NDArray[np.int64]]]:
    """Boxes that are in every list, in the order of equal lists or else sorted, and where each list has them."""
    if not own:
        return np.zeros((0, 5), np.int64), []
    if all(np.array_equal(own[0], other) for other in own[1:]):
        # the usual case, for which millions of places need no sorting
        return own[0], [np.arange(len(own[0]))] * len(own)
    together = np.concatenate(own)
    # equal boxes get equal numbers, in sorted order
    order = np.lexsort(together.T[::-1])
    ordered = together[order]
    starts = np.ones(len(order), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(starts) - 1
    numbers = np.split(number, np.cumsum([len(boxes) for boxes in own])[:-1])
    common = numbers[0]
    for other in numbers[1:]:
        common = np.intersect1d(common, other)
    common = np.unique(common)
    orders = []
    for found in numbers:
        ranks = np.argsort(found, kind="stable")
        orders.append(ranks[np.searchsorted(found[ranks], common)])
    return ordered[starts][common], orders
