"""The wavefront sampler: all steps in one pass from left to right; nothing but a strip of each state is kept.

Block column j of step s + 1 follows block column j of step s, moved left by as many patches as the network sees
(`Skew`), so the columns of noise that enter on one side leave as finished image on the other, and memory depends on
the rows of a sweep, never on the region's width. Any rows and columns of a region may be swept by themselves: the
result is that of the plain sampler over the whole region, up to rounding; and it is bit for bit the same whatever rows,
columns and order are swept, since every block is anchored to the region and every pass has one shape.

A patch's output must depend on itself and `halo_px` around it alone; other patches of a block may hold anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tera_mind.diffusion.loss import OUTSIDE
from tera_mind.diffusion.process import image_of
from tera_mind.errors import InputError
from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork
from tera_mind.processes import give_memory_back
from tera_mind.sampling.counts_window import CountsWindow
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.finite import Finite
from tera_mind.sampling.plain import BoxNoise, CountSource, OnBlock, SamplerSettings, check, pixel_mask
from tera_mind.sampling.skew import Skew
from tera_mind.sampling.strip import Strip


def sweep(
    network: BlockNetwork,
    counts: CountSource,
    noise: BoxNoise,
    domain: Domain,
    settings: SamplerSettings,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
    device: torch.device | None = None,
    on_block: OnBlock = lambda: None,
) -> Iterator[tuple[Box, Float[Tensor, "channel y x"]]]:
    """Yield finished pieces, left to right: their place in the brain's pixels and the image in [-1, 1], on the CPU.

    rows, columns: of patches of the region, half open (default: all); the pieces fill exactly these. device: where
    the network is and the state is kept (default: the CPU). `on_block` is called once a block computed. Raises
    `InputError` where the network is in training mode, or rows or columns leave the region, and `NotFiniteError` where
    it gives values that are no finite numbers, before a piece that they reached is yielded.
    """
    check(network, domain)
    rows, columns = rows or (0, domain.rows), columns or (0, domain.columns)
    wanted = Box(*rows, *columns) if rows[0] < rows[1] and columns[0] < columns[1] else None
    if wanted is None or not Box(0, domain.rows, 0, domain.columns).contains(wanted):
        raise InputError(
            f"a sweep is of rows within 0:{domain.rows} and columns within 0:{domain.columns} of patches, "
            f"got {rows[0]}:{rows[1]} and {columns[0]}:{columns[1]}"
        )
    yield from _Sweep(network, counts, noise, domain, settings, wanted, device or torch.device("cpu"), on_block).run()


@dataclass(frozen=True)
class _Task:
    """One block of one step: its place in the blocks of the region and in pixels of the region."""

    step: int
    patches: Box
    pixels: Box


class _Sweep:
    """The state of a sweep: a strip of every state but the last."""

    def __init__(
        self,
        network: BlockNetwork,
        counts: CountSource,
        noise: BoxNoise,
        domain: Domain,
        settings: SamplerSettings,
        wanted: Box,
        device: torch.device,
        on_block: OnBlock,
    ) -> None:
        self.network, self.noise, self.domain, self.settings = network, noise, domain, settings
        self.device, self.on_block, self.wanted = device, on_block, wanted
        self.solver = settings.solver
        side, region = network.patch_px, domain.region
        shape = (domain.rows, domain.columns)
        rows, columns = (wanted.y0, wanted.y1), (wanted.x0, wanted.x1)
        self.finite = Finite(settings.steps)
        self.skew = Skew.of(settings, side, network.halo_px, shape, rows, columns)
        self.lag = self.skew.lag
        self.computed = [self.skew.computed(domain, step) for step in range(1, settings.steps + 1)]
        self.counts = CountsWindow(
            counts,
            network.bin_px,
            (settings.block_rows * side, settings.block_columns * side),
            (region.y0 + network.halo_px, region.x0 + network.halo_px),  # where windows end, so that none is read early
            domain.pixels(self.skew.needed(1)).grow(network.halo_px),
        )
        corner = Box(region.y0, region.y0 + 1, region.x0, region.x0 + 1)
        self.dtype = noise(0, corner).dtype
        #: columns of states used again: memory that comes and goes in large pieces is not given back in whole
        self._spare: list[Tensor] = []
        self.strips = [
            Strip(1 + (self.solver.carried if state else 0), network.channels, *self._span(state), device, self.dtype)
            for state in range(settings.steps)
        ]

    def _span(self, state: int) -> tuple[int, int]:
        """Pixel rows of the region that are kept of a state."""
        first, last = self.skew.held(state)
        return first * self.network.patch_px, last * self.network.patch_px

    def run(self) -> Iterator[tuple[Box, Float[Tensor, "channel y x"]]]:
        enters, leaves = self.skew.across(0), self.skew.across(self.settings.steps)
        # noise is made on the CPU while the network is busy with the columns before
        with ThreadPoolExecutor(1, thread_name_prefix="noise") as pool:
            ahead = pool.submit(self._start, enters.start)
            for tick in range(enters.start, leaves.stop + self.lag * (self.settings.steps - 1)):
                if tick in enters:
                    self.strips[0].push(ahead.result(), self.skew.column(0, tick)[0] * self.network.patch_px)
                    if tick + 1 in enters:
                        ahead = pool.submit(self._start, tick + 1)
                yield from self._tick(tick)

    def _tick(self, tick: int) -> Iterator[tuple[Box, Float[Tensor, "channel y x"]]]:
        """A block column of every step: one after the other, or where there is a lag all together."""
        every = [(step, tick - self.lag * (step - 1)) for step in range(1, self.settings.steps + 1)]
        for together in [every] if self.lag else [[one] for one in every]:
            finished = self._advance([(step, j) for step, j in together if j in self.skew.across(step)])
            for step, j in together:
                self._let_go(step, j)
            give_memory_back()
            if finished is not None:
                yield finished

    def _start(self, j: int) -> Float[Tensor, "1 channel y x"]:
        """Noise of a block column, only where patches are active."""
        side, (first, last) = self.network.patch_px, self.skew.held(0)
        left, right = self.skew.column(0, j)
        out = self._empty(1, 0)
        for patches in Box(first, last, left, right).tiles(self.settings.block_rows, self.settings.block_columns):
            if self.domain.mask(patches).any():
                fresh = self.noise(0, self.domain.pixels(patches))
                place = Box(0, patches.height * side, 0, patches.width * side).shift((patches.y0 - first) * side, 0)
                out[(0, slice(None), *place.slices())] = self._masked(fresh.to(self.device), patches)
        return out

    def _empty(self, planes: int, state: int) -> Float[Tensor, "plane channel y x"]:
        (top, bottom), width = self._span(state), self.settings.block_columns * self.network.patch_px
        size = (planes, self.network.channels, bottom - top, width)
        if state == self.settings.steps:  # it leaves as finished image
            return torch.full(size, OUTSIDE, device=self.device, dtype=self.dtype)
        most = 1 + self.solver.carried if self.settings.steps > 1 else 1
        rows = max(last - first for first, last in map(self._span, range(self.settings.steps)))
        flat = (
            self._spare.pop()
            if self._spare
            else torch.empty(most * size[1] * rows * width, device=self.device, dtype=self.dtype)
        )
        return flat[: math.prod(size)].view(size).fill_(OUTSIDE)

    def _masked(self, image: Float[Tensor, "channel y x"], patches: Box) -> Float[Tensor, "channel y x"]:
        if self.domain.mask(patches).all():
            return image
        return torch.where(pixel_mask(self.domain, patches).to(self.device), image, OUTSIDE)

    @torch.no_grad()
    def _advance(self, columns: list[tuple[int, int]]) -> tuple[Box, Float[Tensor, "channel y x"]] | None:
        """Compute block columns (step, j), none of which needs another; the finished piece if the last step is one."""
        side, last = self.network.patch_px, self.settings.steps
        made = {step: self._empty(1 + (self.solver.carried if step < last else 0), step) for step, _ in columns}
        tasks = []
        for step, j in columns:
            down, across = self.skew.down(step), self.skew.across(step)
            for i in down:
                if self.computed[step - 1][i - down.start, j - across.start]:
                    patches = self.skew.block(step, i, j)
                    tasks.append(_Task(step, patches, Box(*(side * edge for edge in _edges(patches)))))
        size = self.settings.micro_batch
        for start in range(0, len(tasks), size):
            self._pass(tasks[start : start + size], made)
        finished = None
        for step, j in columns:
            left = self.skew.column(step, j)[0] * side
            if step < last:
                self.strips[step].push(made[step], left)
            else:
                finished = self._finished(made[step][0], left)
        return finished

    def _pass(self, tasks: list[_Task], made: dict[int, Tensor]) -> None:
        """One pass of the network, always of `micro_batch` blocks, and a step of the solver for each block."""
        halo, size = self.network.halo_px, self.settings.micro_batch
        first = tasks[0].pixels
        shape = (size, self.network.channels, first.height + 2 * halo, first.width + 2 * halo)
        windows = torch.full(shape, OUTSIDE, device=self.device, dtype=self.dtype)
        t = torch.zeros(size, dtype=torch.int64)
        genes = []
        for n, task in enumerate(tasks):
            self.strips[task.step - 1].read(task.pixels.grow(halo), windows[n])
            t[n] = self.solver.path.timesteps[task.step - 1]
            genes.append(self.counts.get(self.domain.pixels(task.patches).grow(halo)))
        genes += [torch.zeros_like(genes[0])] * (size - len(tasks))
        outputs = self.network.predict(windows, t, torch.stack(genes))
        self.finite.see([task.step for task in tasks], [self.domain.pixels(task.patches) for task in tasks], outputs)
        inner = Box(0, first.height, 0, first.width).shift(halo, halo).slices()
        for task, window, output in zip(tasks, windows, outputs, strict=False):  # padding is left out
            self._step(task, window[(..., *inner)], output.to(window), made[task.step])
            self.on_block()

    def _step(
        self, task: _Task, x: Float[Tensor, "channel y x"], output: Float[Tensor, "channel y x"], made: Tensor
    ) -> None:
        index, strip = task.step - 1, self.strips[task.step - 1]
        bar = torch.tensor(self.solver.path.alpha_bar[index], dtype=x.dtype)
        x0 = image_of(self.settings.prediction, output, x, bar)
        carried = strip.carried(task.pixels) if index and self.solver.carried else None
        fresh = None
        if self.solver.adds_noise(index):
            fresh = self.noise(task.step, self.domain.pixels(task.patches)).to(x)
        state, carried = self.solver.step(index, x, x0, carried, fresh)
        top, bottom = self._span(task.step)
        inside = Box(top, bottom, task.pixels.x0, task.pixels.x1).intersect(task.pixels)
        source = (..., *inside.shift(-task.pixels.y0, -task.pixels.x0).slices())
        target = (slice(None), slice(inside.y0 - top, inside.y1 - top), slice(None))
        made[0][target] = self._masked(state, task.patches)[source]
        if carried is not None:
            for plane, value in zip(made[1:], carried, strict=True):
                plane[target] = value[source]

    def _finished(self, state: Float[Tensor, "channel y x"], left: int) -> tuple[Box, Float[Tensor, "channel y2 x2"]]:
        side, region = self.network.patch_px, self.domain.region
        top = self._span(self.settings.steps)[0]
        column = Box(top, top + state.shape[-2], left, left + state.shape[-1])
        inside = Box(*(side * edge for edge in _edges(self.wanted))).intersect(column)
        piece = state[(..., *inside.shift(-top, -left).slices())]
        self.finite.check()  # here, where the piece waits for the device anyway
        return inside.shift(region.y0, region.x0), piece.contiguous().cpu()

    def _let_go(self, step: int, j: int) -> None:
        """Forget what block column j was the last of this step to read."""
        side, halo = self.network.patch_px, self.network.halo_px
        read = self.skew.column(step, j)[1] * side - halo
        spent = self.strips[step - 1].let_go(read)
        if spent is not None:
            self._spare.append(spent.new_empty(0).set_(spent.untyped_storage()))
        if step == self.settings.steps:
            self.counts.let_go(read + self.domain.region.x0)


def _edges(box: Box) -> tuple[int, int, int, int]:
    return box.y0, box.y1, box.x0, box.x1
