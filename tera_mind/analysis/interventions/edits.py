"""The edits: counts of a window in, edited counts out. Each is a function of place and counts, never of the window.

Counts are float32 (gene, section, bin_y, bin_x), never below 0. An edit of bins sees any window; an edit of rows
(second moments) sees windows of whole patches, whose transcripts of a section are one row: it says how many transcripts
of every gene the patch shall have, and the bins of the patch share them as they shared the former ones.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tera_mind.analysis.interventions.algebra import leading, mapped_rows, matching_map, scaling_map
from tera_mind.analysis.interventions.population import Basis
from tera_mind.errors import InputError, PanelMismatchError
from tera_mind.geometry import Box
from tera_mind.noise import philox

Counts = NDArray[np.float32]
#: what becomes of genes that are not scaled, and what counts are replaced with
OTHERS = ("keep", "zero")
PATTERNS = ("noise", "constant", "stripes", "checks")


class Window(NamedTuple):
    """Where counts lie: genes in order, section numbers (some may not exist), box in the brain's pixels, sizes."""

    genes: tuple[str, ...]
    sections: tuple[int, ...]
    box: Box
    bin_px: int
    patch_px: int
    pixel_um: float


@runtime_checkable
class Edit(Protocol):
    """One kind of edit; picklable."""

    @property
    def rows(self) -> bool:
        """Whether windows must be whole patches."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Genes that it changes; empty: all."""

    def check(self, window: Window) -> None:
        """Raise where the edit does not fit genes and sizes; the window's box and sections are not looked at."""

    def apply(self, counts: Counts, window: Window) -> Counts:
        """Edited counts of the window, as if it applied everywhere; the counts given are left alone."""

    def facts(self) -> dict[str, Any]:
        """What the outcome depends on, plain JSON."""


def gene_columns(genes: tuple[str, ...], panel: tuple[str, ...]) -> NDArray[np.int64]:
    """Positions of genes in a panel. Raises `PanelMismatchError` naming those it lacks."""
    place = {gene: number for number, gene in enumerate(panel)}
    missing = [gene for gene in genes if gene not in place]
    if missing:
        raise PanelMismatchError(
            f"the network's panel of {len(panel)} genes lacks {', '.join(missing[:8])}, which an edit names; it has "
            f"{', '.join(panel[:5])}, ..."
        )
    return np.array([place[gene] for gene in genes], np.int64)


@dataclass(frozen=True)
class Scale:
    """Multiply genes by a factor; with `others` "zero" all other genes go, as the published code does (IST-editing)."""

    kind: ClassVar[str] = "scale"
    rows: ClassVar[bool] = False
    genes: tuple[str, ...]
    factor: float
    others: str = "keep"

    def __post_init__(self) -> None:
        if not self.genes or len(set(self.genes)) != len(self.genes):
            raise InputError(f"scale needs genes, each once, got {list(self.genes)}")
        if not 0 <= self.factor < np.inf:
            raise InputError(f"a gene's factor is 0 or more, got {self.factor:g}")
        if self.others not in OTHERS:
            raise InputError(f"others of a scale are {' or '.join(OTHERS)}, got {self.others!r}")

    @property
    def targets(self) -> tuple[str, ...]:
        return self.genes if self.others == "keep" else ()

    def check(self, window: Window) -> None:
        gene_columns(self.genes, window.genes)

    def apply(self, counts: Counts, window: Window) -> Counts:
        own = gene_columns(self.genes, window.genes)
        out = counts.copy() if self.others == "keep" else np.zeros_like(counts)
        out[own] = counts[own] * np.float32(self.factor)
        return out

    def facts(self) -> dict[str, Any]:
        return {"kind": self.kind, "genes": list(self.genes), "factor": self.factor, "others": self.others}


@dataclass(frozen=True, eq=False)
class _RowEdit(ABC):
    """Edits of rows by an affine map; see `algebra`."""

    rows: ClassVar[bool] = True
    population: Basis
    components: int | None = 1
    centred: bool = False
    genes: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        return self.genes

    def bases(self) -> tuple[Basis, ...]:
        return (self.population,)

    def check(self, window: Window) -> None:
        leading(self.components, len(window.genes))
        gene_columns(self.genes, window.genes)
        for basis in self.bases():
            basis.of(window.genes)
            basis.require_rows(window.patch_px * window.pixel_um)

    @abstractmethod
    def affine(self, genes: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(A, before, after) of (X - before) A + after."""

    @cached_property
    def _known(self) -> dict[tuple[str, ...], tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
        return {}

    def apply(self, counts: Counts, window: Window) -> Counts:
        if window.genes not in self._known:
            self._known[window.genes] = self.affine(window.genes)
        matrix, before, after = self._known[window.genes]
        bins = to_rows(counts, window.patch_px // window.bin_px)
        totals = bins.sum(axis=-1)
        there = totals.any(axis=1)  # a patch without transcripts is no tissue: nothing is put there
        wanted = totals.copy()
        wanted[there] = np.maximum(mapped_rows(totals[there], matrix, before, after), 0.0)
        if self.genes:
            kept = np.ones(len(window.genes), bool)
            kept[gene_columns(self.genes, window.genes)] = False
            wanted[:, kept] = totals[:, kept]
        return from_rows(shared_out(bins, totals, wanted), counts.shape)

    def facts(self) -> dict[str, Any]:
        return {
            "kind": getattr(self, "kind", ""),
            "population": {"digest": self.population.digest, **self.population.facts},
            "components": "all" if self.components is None else self.components,
            "centred": self.centred,
            "genes": list(self.genes),
        }


@dataclass(frozen=True, eq=False)
class Match(_RowEdit):
    """Give patches of a population the leading second moments of a target's (SST-editing); clamped at 0.

    components: how many, None for all (full rank); centred: match mean and covariance instead of the uncentred second
    moment; genes: change only these.
    """

    kind: ClassVar[str] = "match"
    target: Basis = field(kw_only=True)

    def bases(self) -> tuple[Basis, ...]:
        return self.population, self.target

    def affine(self, genes: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        own, other = self.population.of(genes), self.target.of(genes)
        if self.centred:
            return matching_map(own.centred, other.centred, self.components), own.sums.mean, other.sums.mean
        none = np.zeros(len(genes))
        return matching_map(own.uncentred, other.uncentred, self.components), none, none

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "target": {"digest": self.target.digest, **self.target.facts}}


@dataclass(frozen=True, eq=False)
class SelfScale(_RowEdit):
    """Multiply the leading eigenvalues of a population by a factor (IST-editing); clamped at 0."""

    kind: ClassVar[str] = "self_scale"
    factor: float = field(kw_only=True)

    def affine(self, genes: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        own = self.population.of(genes)
        origin = own.sums.mean if self.centred else np.zeros(len(genes))
        return scaling_map(own.centred if self.centred else own.uncentred, self.components, self.factor), origin, origin

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "factor": self.factor}


def to_rows(counts: Counts, n: int) -> NDArray[np.float64]:
    """Bins of every patch (n x n) and section: (row, gene, bin), rows in the order (section, patch_y, patch_x)."""
    genes, sections, height, width = counts.shape
    split = counts.reshape(genes, sections, height // n, n, width // n, n).astype(np.float64)
    return np.ascontiguousarray(split.transpose(1, 2, 4, 0, 3, 5)).reshape(-1, genes, n * n)


def from_rows(rows: NDArray[np.float64], shape: tuple[int, ...]) -> Counts:
    """The inverse of `to_rows`."""
    genes, sections, height, width = shape
    n = int(rows.shape[-1] ** 0.5)
    split = rows.reshape(sections, height // n, width // n, genes, n, n).transpose(3, 0, 1, 4, 2, 5)
    return np.ascontiguousarray(split, np.float32).reshape(shape)


def shared_out(
    bins: NDArray[np.float64], totals: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bins (row, gene, bin) that hold `wanted` (row, gene) in all: shared as the gene's own transcripts were.

    A gene that a patch lacked is shared out like all transcripts of the patch together.
    """
    everything = bins.sum(axis=1)
    total = totals.sum(axis=-1)[:, None]
    usual = np.divide(everything, total, out=np.zeros_like(everything), where=total > 0)
    share = np.divide(bins, totals[..., None], out=np.zeros_like(bins), where=totals[..., None] > 0)
    share = np.where(totals[..., None] > 0, share, usual[:, None])
    return share * wanted[..., None]


@dataclass(frozen=True)
class Replace:
    """g' = (1 - keep) pattern + keep g (IST-editing).

    pattern: "noise" (uniform in 0 .. high, keyed by seed, gene, section and place), "constant" (high), "stripes" or
    "checks" (high and 0 in turn, `period_px` each, from the canvas' corner); genes: change only these.
    """

    kind: ClassVar[str] = "replace"
    rows: ClassVar[bool] = False
    pattern: str = "noise"
    keep: float = 0.0
    high: float = 1.0
    period_px: int = 64
    genes: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise InputError(f"a pattern is one of {', '.join(PATTERNS)}, got {self.pattern!r}")
        if not 0 <= self.keep <= 1 or not 0 <= self.high < np.inf or self.period_px < 1 or self.seed < 0:
            raise InputError(
                "replace takes keep 0 to 1, high, seed 0 or more and period_px 1 or more, got "
                f"{self.keep:g}, {self.high:g}, {self.seed} and {self.period_px}"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        return self.genes

    def check(self, window: Window) -> None:
        gene_columns(self.genes, window.genes)

    def apply(self, counts: Counts, window: Window) -> Counts:
        own = gene_columns(self.genes or window.genes, window.genes)
        y = np.arange(window.box.y0, window.box.y1, window.bin_px)
        x = np.arange(window.box.x0, window.box.x1, window.bin_px)
        if self.pattern == "noise":
            drawn = uniform(self.seed, own, window.sections, y, x)
        else:
            rows, columns = ((place + window.bin_px // 2) // self.period_px for place in (y, x))
            on = {
                "constant": np.ones((len(y), len(x))),
                "stripes": np.broadcast_to(1 - columns % 2, (len(y), len(x))),
                "checks": 1 - (rows[:, None] + columns[None]) % 2,
            }[self.pattern]
            drawn = np.broadcast_to(on, (len(own), len(window.sections), len(y), len(x)))
        out = counts.copy()
        out[own] = (1 - self.keep) * self.high * drawn + self.keep * counts[own]
        return out

    def facts(self) -> dict[str, Any]:
        return {name: list(v) if isinstance(v, tuple) else v for name, v in {"kind": self.kind, **vars(self)}.items()}


def uniform(
    seed: int,
    genes: NDArray[np.int64],
    sections: tuple[int, ...],
    y: NDArray[np.int64],
    x: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Numbers in (0, 1), a function of seed, gene's number, section and place alone: (gene, section, y, x)."""
    low = np.uint64(0xFFFFFFFF)
    shape = (len(genes), len(sections), len(y), len(x))
    counters = tuple(
        np.broadcast_to((values.astype(np.int64).astype(np.uint64) & low).reshape(side), shape)
        for values, side in (
            (y, (1, 1, -1, 1)), (x, (1, 1, 1, -1)), (np.array(sections), (1, -1, 1, 1)), (genes, (-1, 1, 1, 1)),
        )
    )  # fmt: skip
    words = philox(counters, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))[0]
    return ((words >> np.uint64(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)


#: a user's function: (counts, window, **arguments) -> counts of the same shape, bin by bin
UserFunction = Callable[..., Any]


@dataclass(frozen=True)
class Function:
    """A Python function `module:function` of the user's: `f(counts, window, **arguments) -> counts`.

    It is handed float32 (gene, section, bin_y, bin_x) and a `Window`, and returns the same shape, finite and 0 or more.
    A bin's outcome must depend on that bin and its place alone; one that looks at the window is refused. The digest
    holds the text of its module.
    """

    kind: ClassVar[str] = "function"
    rows: ClassVar[bool] = False
    targets: ClassVar[tuple[str, ...]] = ()
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def _called(self) -> UserFunction:
        module, colon, name = self.function.partition(":")
        try:
            found = getattr(importlib.import_module(module), name) if colon and name else None
        except Exception as error:  # a user's module may fail in any way
            words = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(
                f"function {self.function!r} cannot be imported ({words}); give module:function"
            ) from error
        if not callable(found):
            raise InputError(f"function {self.function!r} should be module:function, a function of counts and window")
        called: UserFunction = found
        return called

    def check(self, window: Window) -> None:
        """Try the function on made-up counts of two sections, whole and in quarters of one."""
        _ = self._called, self.facts()
        n, sections = 4, (0, 1)
        side = n * window.bin_px
        trial = window._replace(sections=sections, box=Box(0, side, 0, side))
        made = np.random.default_rng([0]).poisson(1.0, (len(window.genes), 2, n, n)).astype(np.float32)
        whole = self.apply(made, trial)
        for section, part in itertools.product(sections, trial.box.tiles(side // 2, side // 2)):
            bins = Box(*(edge // window.bin_px for edge in (part.y0, part.y1, part.x0, part.x1))).slices()
            cut = (slice(None), slice(section, section + 1), *bins)
            if not np.array_equal(self.apply(made[cut], trial._replace(sections=(section,), box=part)), whole[cut]):
                raise InputError(
                    f"function {self.function!r} gives a bin another outcome in another window; make it depend on the "
                    "bin and its place (window.box, window.sections) alone"
                )

    def apply(self, counts: Counts, window: Window) -> Counts:
        try:
            out = np.asarray(self._called(counts.copy(), window, **self.arguments), np.float32)
        except Exception as error:
            words = " ".join(str(error).split())
            raise InputError(f"function {self.function!r} failed with {type(error).__name__}: {words}") from error
        if out.shape != counts.shape or not np.isfinite(out).all() or (out < 0).any():
            raise InputError(
                f"function {self.function!r} should return finite counts of {counts.shape}, 0 or more; it returned "
                f"{out.shape}, lowest {out.min() if out.size else 0:g}"
            )
        return out

    def facts(self) -> dict[str, Any]:
        module = importlib.import_module(self.function.partition(":")[0])
        try:
            text = inspect.getsource(module).encode()
        except (OSError, TypeError):
            raise InputError(
                f"function {self.function!r} lies in a module without a Python source, which could not be told from "
                "another version of itself; put a function of your own around it"
            ) from None
        sha256 = hashlib.sha256(text).hexdigest()
        return {"kind": self.kind, "function": self.function, "arguments": self.arguments, "sha256": sha256}
