"""Any patches of a region on demand, as the wavefront makes them, without the rest of the region.

k steps before the end a patch depends on patches at most k network halos around it, so what has to be made is first
planned backwards, patch by patch, and then made forwards, block by block, in the wavefront's own blocks and passes.
Blocks of all steps are kept: a window beside one made before needs only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from tera_mind.diffusion.loss import OUTSIDE
from tera_mind.diffusion.process import image_of
from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork
from tera_mind.sampling.counts_window import CountsWindow
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.finite import Finite
from tera_mind.sampling.kept import ByteCache
from tera_mind.sampling.plain import BoxNoise, CountSource, OnBlock, SamplerSettings, check, pixel_mask
from tera_mind.sampling.skew import Skew

#: (row, column) of a block in the grid of its step, as `Skew` numbers them
Block = tuple[int, int]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Piece:
    """A block after a step, the state first, then carried planes; `valid`: the patches that are as in the region."""

    planes: Float[Tensor, "plane channel y x"]
    valid: Bool[np.ndarray, "rows columns"]

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes + self.valid.nbytes


@dataclass(frozen=True)
class _Plan:
    """Blocks to make, and pieces there are already, after each step (0: the noise), in an area of patches."""

    area: Box
    todo: list[list[Block]]
    pieces: list[dict[Block, Piece]]


class Demand:
    """Makes patches of one section group; not for several threads at once."""

    def __init__(
        self,
        network: BlockNetwork,
        counts: CountSource,
        noise: BoxNoise,
        domain: Domain,
        settings: SamplerSettings,
        kept: ByteCache[Piece],
        device: torch.device | None = None,
        on_block: OnBlock = lambda: None,
        group: int = 0,
    ) -> None:
        """kept, group: where pieces are kept and under which number; device: where the network is (default: the CPU).

        Raises `InputError` where the network is in training mode.
        """
        check(network, domain)
        self.network, self.counts, self.noise, self.domain, self.settings = network, counts, noise, domain, settings
        self.kept, self.group = kept, group
        self.device, self.on_block = device or torch.device("cpu"), on_block
        self._solver = settings.solver
        self._skew = Skew.of(settings, network.patch_px, network.halo_px, (domain.rows, domain.columns))
        self._stencil = np.ones((2 * self._skew.reach + 1,) * 2, bool)

    def area_of(self, patches: Box) -> Box:
        """Patches that some block of some step for these may hold; it may reach beyond the region."""
        largest = max(self.settings.block_rows, self.settings.block_columns)
        return patches.grow(self._skew.reach * self._solver.steps + largest)

    @torch.no_grad()
    def make(self, wanted: Sequence[Box]) -> list[Float[Tensor, "channel y x"]]:
        """Finished images, [-1, 1], on the CPU, of boxes in patches of the region.

        Raises `NotFiniteError` where the network gives values that are no finite numbers.
        """
        plan = self._plan(wanted)
        bounds = self.domain.pixels(plan.area).grow(self.network.halo_px)
        side, region = self.domain.patch_px, self.domain.region
        cell = (self.settings.block_rows * side, self.settings.block_columns * side)
        counts = CountsWindow(self.counts, self.network.bin_px, cell, (region.y0, region.x0), bounds)
        before: dict[Block, Piece] = {}
        for step, todo in enumerate(plan.todo):
            after = plan.pieces[step]
            known = self._known(step, before, plan.area)
            for start in range(0, len(todo), self.settings.micro_batch):
                blocks = todo[start : start + self.settings.micro_batch]
                made = self._advance(step, blocks, before, counts) if step else [self._noise(b) for b in blocks]
                for block, planes in zip(blocks, made, strict=True):
                    piece = Piece(planes, known[self._local(step, block, plan.area)].copy())
                    after[block] = piece = self._merged(piece, after.get(block))
                    self.kept.put((self.group, step, block), piece, piece.nbytes)
            before = after
            plan.pieces[step] = {}  # what is not kept is let go of
        last = self._solver.steps
        return [self._gather(last, before, _scaled(box, side), 1)[0] for box in wanted]

    def _box(self, step: int, block: Block) -> Box:
        return self._skew.block(step, *block)

    def _local(self, step: int, block: Block, area: Box) -> tuple[slice, slice]:
        return self._box(step, block).shift(-area.y0, -area.x0).slices()

    def _blocks(self, step: int, mask: Mask, area: Box) -> list[Block]:
        """Blocks of a step with a patch of a mask over an area, row-major."""
        y, x = np.nonzero(mask)
        rows = (y + area.y0) // self.settings.block_rows
        columns = (x + area.x0 + self._skew.shift(step)) // self.settings.block_columns
        return sorted(set(zip(rows.tolist(), columns.tolist(), strict=True)))

    def _plan(self, wanted: Sequence[Box]) -> _Plan:
        corners = [edge for box in wanted for edge in ((box.y0, box.x0), (box.y1, box.x1))]
        (y0, x0), (y1, x1) = map(min, zip(*corners, strict=True)), map(max, zip(*corners, strict=True))
        area = self.area_of(Box(y0, y1, x0, x1))
        active = self.domain.mask(area)
        need = np.zeros_like(active)
        for box in wanted:
            need[box.shift(-area.y0, -area.x0).slices()] = True
        need &= active
        todo: list[list[Block]] = []
        kept: list[dict[Block, Piece]] = []
        for step in range(self._solver.steps, -1, -1):
            pieces, lacking = {}, need.copy()
            for block in self._blocks(step, need, area):
                piece = self.kept.get((self.group, step, block))
                if piece is not None:
                    pieces[block] = piece
                    lacking[self._local(step, block, area)] &= ~piece.valid
            todo.append(self._blocks(step, lacking, area))
            kept.append(pieces)
            need = ndimage.binary_dilation(lacking, self._stencil) & active
        return _Plan(area, todo[::-1], kept[::-1])

    def _known(self, step: int, before: dict[Block, Piece], area: Box) -> Mask:
        """Patches of an area whose state after a step follows from the pieces of the step before."""
        if not step:
            return np.ones((area.height, area.width), bool)
        known = ~self.domain.mask(area)  # constant, beyond the region too
        for block, piece in before.items():
            known[self._local(step - 1, block, area)] |= piece.valid
        return np.asarray(ndimage.binary_erosion(known, self._stencil))

    def _masked(self, image: Float[Tensor, "channel y x"], patches: Box) -> Float[Tensor, "channel y x"]:
        return torch.where(pixel_mask(self.domain, patches).to(image.device), image, OUTSIDE)

    def _noise(self, block: Block) -> Float[Tensor, "1 channel y x"]:
        patches = self._box(0, block)
        return self._masked(self.noise(0, self.domain.pixels(patches)), patches)[None]

    def _gather(self, step: int, pieces: dict[Block, Piece], pixels: Box, planes: int) -> Tensor:
        """Planes (plane, channel, y, x) of a box in pixels of the region; OUTSIDE where there is no piece."""
        side = self.domain.patch_px
        size = (planes, self.network.channels, pixels.height, pixels.width)
        out = torch.full(size, OUTSIDE, dtype=next((piece.planes.dtype for piece in pieces.values()), torch.float32))
        rows, columns, shift = (
            self.settings.block_rows * side,
            self.settings.block_columns * side,
            side * self._skew.shift(step),
        )
        for row in range(pixels.y0 // rows, -(-pixels.y1 // rows)):
            for column in range((pixels.x0 + shift) // columns, -(-(pixels.x1 + shift) // columns)):
                piece = pieces.get((row, column))
                if piece is not None:
                    source = _scaled(self._box(step, (row, column)), side)
                    part = source.intersect(pixels)
                    here = part.shift(-source.y0, -source.x0).slices()
                    out[(..., *part.shift(-pixels.y0, -pixels.x0).slices())] = piece.planes[(slice(planes), ..., *here)]
        return out

    def _advance(
        self, step: int, blocks: Sequence[Block], before: dict[Block, Piece], counts: CountsWindow
    ) -> list[Float[Tensor, "plane channel y x"]]:
        """Planes of blocks after a step: one pass, always of `micro_batch` blocks."""
        index, solver, halo = step - 1, self._solver, self.network.halo_px
        planes = 1 + (solver.carried if index else 0)
        boxes = [self._box(step, block) for block in blocks]
        states = [
            self._gather(index, before, _scaled(box, self.domain.patch_px).grow(halo), planes).to(self.device)
            for box in boxes
        ]
        genes = [counts.get(self.domain.pixels(box).grow(halo)) for box in boxes]
        short = self.settings.micro_batch - len(blocks)
        windows = torch.stack([state[0] for state in states] + [torch.full_like(states[0][0], OUTSIDE)] * short)
        t = torch.full((len(windows),), solver.path.timesteps[index])
        outputs = self.network.predict(windows, t, torch.stack(genes + [torch.zeros_like(genes[0])] * short))
        finite = Finite(solver.steps)
        finite.see([step] * len(boxes), [self.domain.pixels(box) for box in boxes], outputs)
        finite.check()
        made = []
        for box, state, output in zip(boxes, states, outputs, strict=False):  # what fills the pass up is left out
            inner = state[..., halo:-halo, halo:-halo]
            x = inner[0]
            x0 = image_of(
                self.settings.prediction, output.to(x), x, torch.tensor(solver.path.alpha_bar[index], dtype=x.dtype)
            )
            fresh = self.noise(step, self.domain.pixels(box)).to(x) if solver.adds_noise(index) else None
            x, carried = solver.step(index, x, x0, inner[1:] if planes > 1 else None, fresh)
            x = self._masked(x, box)[None]
            made.append((x if carried is None else torch.cat([x, carried])).cpu())
            self.on_block()
        return made

    def _merged(self, piece: Piece, older: Piece | None) -> Piece:
        """A piece together with the patches that only an older one of the same block and step knows."""
        if older is None or not (older.valid & ~piece.valid).any():
            return piece
        mask, side = torch.from_numpy(older.valid & ~piece.valid), self.domain.patch_px
        pixels = mask.repeat_interleave(side, 0).repeat_interleave(side, 1)
        return Piece(torch.where(pixels, older.planes, piece.planes), piece.valid | older.valid)


def _scaled(patches: Box, side: int) -> Box:
    return Box(patches.y0 * side, patches.y1 * side, patches.x0 * side, patches.x1 * side)
