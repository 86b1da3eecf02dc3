"""What of a brain store or volume is exported: one face for both, sections and a box chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import FormatError, InputError
from tera_mind.formats.brain import Brain
from tera_mind.formats.transcripts import Transcripts
from tera_mind.formats.volume import Volume
from tera_mind.geometry import Box

#: exported intensities that are 0 and 255 already: whoever reads them must not stretch them again
LEVELS = (0, 255)

Track = Callable[[Iterable[Any], str, int | None], Iterable[Any]]


@dataclass(frozen=True)
class Selection:
    """Sections and a box (pixels of the brain's canvas) of a brain store or a volume.

    `sections` are section numbers of the brain, `names` one file or element name each.
    """

    source: Brain | Volume
    sections: tuple[int, ...]
    names: tuple[str, ...]
    box: Box

    @staticmethod
    def of(path: Path, sections: Sequence[int] | None = None, region: str | None = None) -> Selection:
        """Open `path` and choose; `region` is the text of `Box.parse`. Raises `InputError` or `FormatError`."""
        source = _open(path)
        if isinstance(source, Brain):
            every, whole = tuple(range(len(source.sections))), source.canvas
            names = [_plain(section.name) for section in source.sections]
        else:
            every, whole = source.attributes.sections, source.box
            names = [f"section_{number:03d}" for number in every]
        chosen = every if sections is None else tuple(sections)
        missing = [number for number in chosen if number not in every]
        if missing or not chosen or len(set(chosen)) != len(chosen):
            raise InputError(
                f"{path} has sections {every[0]}..{every[-1]}, asked for {', '.join(map(str, chosen)) or 'none'}; "
                "name each once"
            )
        picked = tuple(names[every.index(number)] for number in chosen)
        if len({name.casefold() for name in picked}) != len(picked):  # SpatialData and some disks know no case
            picked = tuple(f"{number:03d}_{name}" for number, name in zip(chosen, picked, strict=True))
        return Selection(source, chosen, picked, whole if region is None else Box.parse(region, whole))

    @property
    def stains(self) -> tuple[str, ...]:
        return self.source.stains if isinstance(self.source, Brain) else self.source.attributes.stains

    @property
    def pixel_um(self) -> float:
        return self.source.pixel_um if isinstance(self.source, Brain) else self.source.attributes.pixel_um

    @property
    def synthetic(self) -> bool:
        return isinstance(self.source, Volume)

    @property
    def section_um(self) -> float:
        """The spacing that viewers are told."""
        if isinstance(self.source, Volume):
            return self.source.attributes.section_um
        steps = np.abs(np.diff([self.source.sections[number].z_um for number in self.sections]))
        return float(np.median(steps)) if steps.any() else 10.0

    @property
    def z_um(self) -> tuple[float, ...]:
        """Where the sections lie; a volume knows only their spacing."""
        if isinstance(self.source, Brain):
            return tuple(self.source.sections[number].z_um for number in self.sections)
        return tuple(number * self.section_um for number in self.sections)

    def image(self, number: int, box: Box) -> NDArray[np.uint8]:
        """Stains of a section in a box inside the selection's: (stain, y, x)."""
        return np.asarray(self.source.image(box, [number])[:, 0], np.uint8)

    def transcripts(self, number: int, box: Box) -> Transcripts:
        """Transcripts of a section relative to the box' corner; a volume has none."""
        return self.source.transcripts(number, box) if isinstance(self.source, Brain) else Transcripts.empty()

    def bands(self, rows: int) -> Iterator[Box]:
        """The box in bands of `rows` pixels, from the top."""
        yield from self.box.tiles(rows, self.box.width)

    @property
    def image_bytes(self) -> int:
        """Bytes of the chosen pixels, before compression and pyramids."""
        return len(self.stains) * len(self.sections) * self.box.height * self.box.width


def _open(path: Path) -> Brain | Volume:
    try:
        return Brain.open(path)
    except FormatError as error:
        try:
            return Volume.open(path)
        except FormatError:
            raise FormatError(f"{path} is neither a brain store nor a volume that can be read ({error})") from None


def _plain(name: str) -> str:
    """A name that files and SpatialData elements may have."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "_" for letter in name).strip(".") or "section"
