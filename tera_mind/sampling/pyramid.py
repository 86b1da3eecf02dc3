"""The second stage of a volume: the pyramid of one plane, a task of its own, so that no shard has two writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tera_mind.formats.ome import PixelType, mean_pool, open_level, pyramid_levels, shard_windows
from tera_mind.geometry import Box
from tera_mind.sampling.writer import Files, ShardWriter


def run_pyramid(volume: Path, staging: Path, dtype: PixelType, stain: int, plane: int) -> Files:
    """Make levels 1, 2, ... of one stain and section (its position in the volume) from level 0, durable on return."""
    shards = ShardWriter(volume, staging, dtype)
    try:
        for number in range(1, pyramid_levels(volume)):
            fine, coarse = (open_level(volume, level, dtype=dtype) for level in (number - 1, number))
            height, width = fine.shape[2:]
            for box in shard_windows(coarse.shape, max((coarse.shards or coarse.chunks)[2:])):
                source = Box(2 * box.y0, min(2 * box.y1, height), 2 * box.x0, min(2 * box.x1, width))
                window = np.asarray(fine[(stain, plane, *source.slices())])
                shards.write(number, stain, plane, box, mean_pool(window))
        return shards.seal()
    finally:
        shards.close()
