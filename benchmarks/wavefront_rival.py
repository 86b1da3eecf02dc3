"""The published way to sample a region, in plain words: one step over everything, its state on disk, then the next.

After every step the whole state lies in a zarr store of its own, in tiles of 256 px; the next step reads each tile with
its rim, which touches the eight stores' chunks around it, runs the network and writes the tile into the next store.
Network, noise and solver are ours, so that only the order of the work and the store differ.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import torch
import zarr

from tera_mind.diffusion.loss import OUTSIDE
from tera_mind.diffusion.process import image_of
from tera_mind.geometry import Box
from tera_mind.model.blocks import BlockNetwork
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import BoxNoise, CountSource, SamplerSettings, to_uint8

TILE_PX = 256


class DiskSampler:
    """DDIM over a region with the state of every step in `folder`; `io_s` and the bytes are counted as it runs."""

    def __init__(
        self,
        network: BlockNetwork,
        counts: CountSource,
        noise: BoxNoise,
        domain: Domain,
        settings: SamplerSettings,
        folder: Path,
        dtype: str,
    ) -> None:
        self.network, self.counts, self.noise, self.domain, self.settings = network, counts, noise, domain, settings
        self.folder, self.dtype = folder, dtype
        self.io_s, self.read, self.written = 0.0, 0, 0

    def run(self) -> np.ndarray:
        """The finished image, uint8 (channel, y, x)."""
        region, solver = self.domain.region, self.settings.solver
        own = Box(0, region.height, 0, region.width)
        store = None
        for index in range(solver.steps):
            following = self._store(index)
            for tile in own.tiles(TILE_PX, TILE_PX):
                window = self._window(store, tile)
                self._write(following, tile, self._step(index, tile, window))
            store = following
        pixels = np.concatenate([self._read(store, row).numpy() for row in own.tiles(TILE_PX, region.width)], axis=1)
        image = to_uint8(torch.from_numpy(pixels)).numpy()
        begun = time.perf_counter()
        shutil.rmtree(self.folder)
        self.io_s += time.perf_counter() - begun
        return image

    def _store(self, index: int) -> zarr.Array:
        shape = (self.network.channels, self.domain.region.height, self.domain.region.width)
        begun = time.perf_counter()
        made = zarr.create_array(
            self.folder / str(index), shape=shape, chunks=(shape[0], TILE_PX, TILE_PX), dtype=self.dtype
        )
        self.io_s += time.perf_counter() - begun
        return made

    def _window(self, store: zarr.Array | None, tile: Box) -> torch.Tensor:
        """x_t of a tile with the network's halo; beyond the region it is the outside value."""
        region, wide = self.domain.region, tile.grow(self.network.halo_px)
        inside = wide.intersect(Box(0, region.height, 0, region.width))
        out = torch.full((self.network.channels, wide.height, wide.width), OUTSIDE)
        state = self.noise(0, inside.shift(region.y0, region.x0)) if store is None else self._read(store, inside)
        out[(..., *inside.shift(-wide.y0, -wide.x0).slices())] = state
        return out

    def _step(self, index: int, tile: Box, window: torch.Tensor) -> torch.Tensor:
        solver, halo, region = self.settings.solver, self.network.halo_px, self.domain.region
        counts = self.counts(tile.shift(region.y0, region.x0).grow(halo))
        t = torch.tensor([solver.path.timesteps[index]])
        with torch.no_grad():
            output = self.network.predict(window[None], t, counts[None])[0]
        x = window[:, halo:-halo, halo:-halo]
        x0 = image_of(self.settings.prediction, output.to(x), x, torch.tensor(solver.path.alpha_bar[index]))
        return solver.step(index, x, x0, None, None)[0]

    def _read(self, store: zarr.Array, box: Box) -> torch.Tensor:
        begun = time.perf_counter()
        part = torch.from_numpy(np.asarray(store[(slice(None), *box.slices())], np.float32))
        self.io_s += time.perf_counter() - begun
        side = Box(box.y0 // TILE_PX, -(-box.y1 // TILE_PX), box.x0 // TILE_PX, -(-box.x1 // TILE_PX))
        self.read += side.height * side.width * TILE_PX**2 * len(part) * store.dtype.itemsize  # chunks are read whole
        return part

    def _write(self, store: zarr.Array, tile: Box, state: torch.Tensor) -> None:
        begun = time.perf_counter()
        store[(slice(None), *tile.slices())] = state.numpy().astype(store.dtype)
        self.io_s += time.perf_counter() - begun
        self.written += state.numel() * store.dtype.itemsize
