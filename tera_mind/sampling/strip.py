"""A strip of image planes that grows on the right and is let go on the left."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tera_mind.geometry import Box


class Strip:
    """Columns of some planes over pixel rows [top, bottom): the state first, then what a solver carries along.

    The columns given last stay as they came until something is let go; what is then still held goes into a ring, one
    piece of memory in which column x lies at x modulo its width. Pieces cut anew each time would leave holes in the
    process's memory, more of them the longer a sweep.
    """

    def __init__(
        self, planes: int, channels: int, top: int, bottom: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.top, self.bottom = top, bottom
        self._ring = torch.empty((planes, channels, bottom - top, 0), device=device, dtype=dtype)
        self._left = self._right = 0  # columns in the ring
        self._fresh: Tensor | None = None  # the columns right of them

    def push(self, planes: Float[Tensor, "plane channel y x"], left: int) -> None:
        """Add columns that begin at `left`, right after those held; the tensor is kept, not copied."""
        self.let_go(self._left)
        if self._left == self._right:
            self._left = self._right = left
        self._fresh = planes

    def let_go(self, x: int) -> None:
        """Forget the columns left of x."""
        fresh, seam = self._fresh, self._right
        end = seam + (0 if fresh is None else fresh.shape[-1])
        left = min(max(x, self._left), end)
        if end - left > self._ring.shape[-1]:
            self._widen(left, end - left)
        self._left, self._right, self._fresh = left, end, None
        if fresh is not None:
            first = max(left, seam)
            for held, place in self._runs(first, end):
                self._ring[..., held] = fresh[..., place.start + first - seam : place.stop + first - seam]

    def read(self, box: Box, out: Float[Tensor, "channel y x"]) -> None:
        """Copy the state of a box into `out`, which stays as it is where nothing is held."""
        self._copy(0, box, out)

    def carried(self, box: Box) -> Float[Tensor, "plane channel y x"]:
        """The carried planes of a box; zero where nothing is held."""
        planes, channels = self._ring.shape[:2]
        out = self._ring.new_zeros((planes - 1, channels, box.height, box.width))
        for plane in range(1, planes):
            self._copy(plane, box, out[plane - 1])
        return out

    def _copy(self, plane: int, box: Box, out: Float[Tensor, "channel y x"]) -> None:
        common = Box(self.top, self.bottom, self._left, self._right).intersect(box)
        if not common.is_empty:
            rows, target = common.shift(-self.top, 0).slices()[0], common.shift(-box.y0, -box.x0)
            for held, place in self._runs(common.x0, common.x1):
                columns = slice(target.x0 + place.start, target.x0 + place.stop)
                out[:, target.y0 : target.y1, columns] = self._ring[plane, :, rows, held]
        if self._fresh is not None:
            common = Box(self.top, self.bottom, self._right, self._right + self._fresh.shape[-1]).intersect(box)
            source = self._fresh[plane][(..., *common.shift(-self.top, -self._right).slices())]
            out[(..., *common.shift(-box.y0, -box.x0).slices())] = source

    def _runs(self, first: int, last: int) -> Iterator[tuple[slice, slice]]:
        """Columns [first, last) as stretches of the ring, each beside its place counted from `first`."""
        width, x = self._ring.shape[-1], first
        while x < last:
            begin = x % width
            count = min(last - x, width - begin)
            yield slice(begin, begin + count), slice(x - first, x - first + count)
            x += count

    def _widen(self, left: int, width: int) -> None:
        """Give the ring another width; columns from `left` on stay."""
        old, first = self._ring, min(left, self._right)
        kept = [(old[..., held], place) for held, place in self._runs(first, self._right)]
        self._ring = old.new_empty((*old.shape[:-1], width))
        for columns, place in kept:
            for held, given in self._runs(first + place.start, first + place.stop):
                self._ring[..., held] = columns[..., given]
