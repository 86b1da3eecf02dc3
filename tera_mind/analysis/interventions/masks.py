"""Where an intervention applies: hard masks, decided for every bin by its centre."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tera_mind.errors import InputError
from tera_mind.geometry import Box


@runtime_checkable
class LabelMap(Protocol):
    """Labels (section or 1, row, column) over a brain's canvas, a cell every `step_px` pixels; names by label."""

    @property
    def labels(self) -> NDArray[Any]: ...

    @property
    def step_px(self) -> float: ...

    @property
    def names(self) -> dict[int, str]: ...


@dataclass(frozen=True, eq=False)
class Mask:
    """Places of a brain: in a box of pixels, in sections, and under labels of a map; None does not limit."""

    box: Box | None = None
    sections: tuple[int, ...] | None = None
    map: LabelMap | None = None
    wanted: tuple[int, ...] = ()

    @staticmethod
    def of_labels(
        labels: LabelMap, names: tuple[str, ...], box: Box | None = None, sections: tuple[int, ...] | None = None
    ) -> Mask:
        """Places under all labels of these names. Raises `InputError` for names that the map lacks."""
        known = sorted(set(labels.names.values()))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise InputError(
                f"no label {', '.join(unknown) or '(none given)'} in the map; there are {', '.join(known) or 'none'}"
            )
        # hemispheres often bear one name under two labels
        return Mask(box, sections, labels, tuple(label for label, name in labels.names.items() if name in set(names)))

    def at(self, section: int, box: Box, step_px: int) -> NDArray[np.bool_]:
        """Which squares of `step_px` of a box are meant, by their centres: bool (rows, columns)."""
        rows, columns = box.height // step_px, box.width // step_px
        if self.sections is not None and section not in self.sections:
            return np.zeros((rows, columns), bool)
        y = box.y0 + (np.arange(rows) + 0.5) * step_px
        x = box.x0 + (np.arange(columns) + 0.5) * step_px
        inside = np.ones((rows, columns), bool)
        if self.box is not None:
            own = self.box
            inside &= ((y >= own.y0) & (y < own.y1))[:, None] & ((x >= own.x0) & (x < own.x1))[None]
        if self.map is not None and inside.any():
            planes = self.map.labels
            if section < 0 or (len(planes) > 1 and section >= len(planes)):
                return np.zeros((rows, columns), bool)
            plane = planes[section if len(planes) > 1 else 0]
            row, column = (np.floor(place / self.map.step_px).astype(np.int64) for place in (y, x))
            known = ((row >= 0) & (row < plane.shape[0]))[:, None] & ((column >= 0) & (column < plane.shape[1]))[None]
            found = plane[np.ix_(row.clip(0, plane.shape[0] - 1), column.clip(0, plane.shape[1] - 1))]
            inside &= known & np.isin(found, self.wanted)
        return inside

    def facts(self) -> dict[str, Any]:
        """What the mask depends on, plain JSON."""
        facts: dict[str, Any] = {}
        if self.box is not None:
            facts["box"] = str(self.box)
        if self.sections is not None:
            facts["sections"] = list(self.sections)
        if self.map is not None:
            names = {label: self.map.names[label] for label in self.wanted}
            pixels = np.ascontiguousarray(self.map.labels)
            sha = hashlib.sha256(f"{pixels.shape} {pixels.dtype} {self.map.step_px!r}".encode())
            sha.update(pixels.data)
            facts["labels"] = {"names": {str(key): name for key, name in names.items()}, "sha256": sha.hexdigest()}
        return facts


#: no limit at all
EVERYWHERE = Mask()
