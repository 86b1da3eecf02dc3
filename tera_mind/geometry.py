"""Axes, boxes, grids; patch <-> pixel <-> micron. The only module that knows axis order.

Axis order, stated once: on disk an image is (c, z, y, x) = (stain, section, y, x), the order that OME-NGFF demands;
in the model a batch is (b, c, z, y, x). A channel of a flattened image is `stain * sections + section`. Boxes are
half open, in pixels, y before x.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tera_mind.errors import InputError

#: image sections that come out of a window of gene sections (the published pairs; 1 has no context)
IMAGE_SECTIONS = {1: 1, 4: 2, 8: 4, 16: 8}


@dataclass(frozen=True, order=True)
class Box:
    """A half-open rectangle of pixels, `[y0, y1) x [x0, x1)`; it may reach beyond the canvas."""

    y0: int
    y1: int
    x0: int
    x1: int

    def __post_init__(self) -> None:
        if self.y1 < self.y0 or self.x1 < self.x0:
            raise InputError(f"a box needs y0 <= y1 and x0 <= x1, got {self}")

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def is_empty(self) -> bool:
        return self.height == 0 or self.width == 0

    def __str__(self) -> str:
        return f"{self.y0}:{self.y1},{self.x0}:{self.x1}"

    def shift(self, dy: int, dx: int) -> Box:
        return Box(self.y0 + dy, self.y1 + dy, self.x0 + dx, self.x1 + dx)

    def grow(self, margin_px: int) -> Box:
        """The box with a margin on every side (negative shrinks it)."""
        return Box(self.y0 - margin_px, self.y1 + margin_px, self.x0 - margin_px, self.x1 + margin_px)

    def intersect(self, other: Box) -> Box:
        """The common part; an empty box at the nearest corner where there is none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Box(y0, max(y0, min(self.y1, other.y1)), x0, max(x0, min(self.x1, other.x1)))

    def contains(self, other: Box) -> bool:
        return self.y0 <= other.y0 and other.y1 <= self.y1 and self.x0 <= other.x0 and other.x1 <= self.x1

    def tiles(self, height: int, width: int) -> Iterator[Box]:
        """Tiles of the given size in row-major order; those at the far edges are cut to the box."""
        for y in range(self.y0, self.y1, height):
            for x in range(self.x0, self.x1, width):
                yield Box(y, min(y + height, self.y1), x, min(x + width, self.x1))

    def slices(self) -> tuple[slice, slice]:
        """Index of the last two axes of an array whose origin is pixel (0, 0)."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @staticmethod
    def parse(text: str, canvas: Box, pixel_um: float | None = None) -> Box:
        """Read `y0:y1,x0:x1` against a canvas.

        Each bound is a pixel, a percentage of the canvas (`60%`), a distance from the canvas' corner (`500um`, `2mm`,
        where `pixel_um` says how large a pixel is), or empty for the canvas' own edge, so `:,60%:` is the right 40 %.
        Raises `InputError` when the text cannot be read or leaves the canvas.
        """
        match = re.fullmatch(r"\s*(\S*?):(\S*?)\s*,\s*(\S*?):(\S*?)\s*", text)
        if match is None:
            raise InputError(f"a region is y0:y1,x0:x1 in pixels or percent (for example ':,60%:'), got {text!r}")
        edges = (canvas.y0, canvas.y1, canvas.x0, canvas.x1)
        sizes = (canvas.height, canvas.height, canvas.width, canvas.width)
        starts = (canvas.y0, canvas.y0, canvas.x0, canvas.x0)
        bounds = [
            _bound(part, edge, start, size, text, pixel_um)
            for part, edge, start, size in zip(match.groups(), edges, starts, sizes, strict=True)
        ]
        box = Box(*bounds)
        if box.is_empty or not canvas.contains(box):
            raise InputError(f"region {text!r} is {box}, which is empty or leaves the canvas {canvas}")
        return box


def _bound(part: str, edge: int, start: int, size: int, text: str, pixel_um: float | None) -> int:
    if part == "":
        return edge
    try:
        if part.endswith("%"):
            return start + round(size * float(part[:-1]) / 100)
        if part.endswith(("um", "mm")) and pixel_um is not None:
            return start + round(float(part[:-2]) * (1000 if part.endswith("mm") else 1) / pixel_um)
        return int(part)
    except (ValueError, OverflowError):
        kinds = (
            "neither a pixel nor a percentage" if pixel_um is None else "no pixel, percentage or distance in um or mm"
        )
        raise InputError(f"bound {part!r} of region {text!r} is {kinds}") from None


@dataclass(frozen=True)
class SectionGroup:
    """Image sections generated together and the window of gene sections they are generated from.

    Section numbers below 0 or at `n_sections` and above are empty sections.
    """

    image: tuple[int, ...]
    genes: tuple[int, ...]


def image_sections(gene_sections: int) -> int:
    """Number of image sections Z that a window of `gene_sections` = 1, 4, 8 or 16 yields."""
    if gene_sections not in IMAGE_SECTIONS:
        raise InputError(f"gene sections must be one of {sorted(IMAGE_SECTIONS)}, got {gene_sections}")
    return IMAGE_SECTIONS[gene_sections]


def section_window(first: int, gene_sections: int) -> SectionGroup:
    """The group whose first image section is `first`: Z image sections with Zg/4 gene sections of context a side."""
    count, context = image_sections(gene_sections), gene_sections // 4
    return SectionGroup(
        image=tuple(range(first, first + count)),
        genes=tuple(range(first - context, first - context + gene_sections)),
    )


def section_groups(n_sections: int, gene_sections: int) -> list[SectionGroup]:
    """Groups at stride Z that cover sections 0 .. n_sections - 1, each once; the last may hold surplus sections."""
    stride = image_sections(gene_sections)
    return [section_window(first, gene_sections) for first in range(0, n_sections, stride)]
