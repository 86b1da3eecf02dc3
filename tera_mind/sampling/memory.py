"""Memory that a sweep takes beside the network: states, gene counts, and the passes on their way."""

from __future__ import annotations

import itertools

from tera_mind.sampling.plain import SamplerSettings
from tera_mind.sampling.skew import Skew

_STATE_BYTES = 4  # float32
_COUNT_BYTES = 1  # as `compact` keeps whole numbers up to 255


def memory_bytes(
    skew: Skew, settings: SamplerSettings, *, patch_px: int, halo_px: int, bin_px: int, channels: int, genes: int,
    gene_sections: int,
) -> int:  # fmt: skip
    """Peak of states and counts of a sweep with noise in float32; the network's weights and activations come on top.

    It depends on the rows of a sweep and not on the region's width (a region narrower than the skew takes less). Counts
    are taken as whole numbers up to 255, of which a byte each is kept; others take four. With inactive patches fewer
    counts are held, at most these.
    """
    column = settings.block_columns * patch_px
    strip = skew.reach * patch_px + halo_px + skew.lag * column
    carried = settings.solver.carried
    rows = [patch_px * (last - first) for first, last in map(skew.held, range(skew.steps + 1))]
    planes = [1, *[1 + carried] * (skew.steps - 1), 1]
    sizes = [channels * _STATE_BYTES * p * r for p, r in zip(planes, rows, strict=True)]  # of one pixel column
    kept = strip * sum(sizes[:-1]) + column * sizes[0]  # and the noise that is made ahead
    fresh = column * (sum(sizes[1:]) if skew.lag else max(a + b for a, b in itertools.pairwise(sizes)))
    window = (settings.block_rows * patch_px + 2 * halo_px) * (column + 2 * halo_px)
    values = genes * gene_sections
    # a pass: windows and outputs, and counts one by one and together; a trimmed strip while the whole is still there
    batch = _STATE_BYTES * settings.micro_batch * window * (2 * channels + 2 * values / bin_px**2)
    return int(kept + fresh + max(batch, strip * max(sizes)) + _counts(skew, column, patch_px, halo_px, bin_px, values))


def _counts(skew: Skew, column: int, patch_px: int, halo_px: int, bin_px: int, values: int) -> int:
    """Cells of counts from the last step's window to the first step's; cells begin `halo_px` right of the blocks."""
    behind = (skew.steps - 1) * (skew.lag * column + skew.reach * patch_px) + 2 * halo_px
    width = column * (1 + -(-behind // column))
    need = skew.needed(1)
    height = (need.y1 - need.y0) * patch_px + 2 * halo_px
    return _COUNT_BYTES * values * (width // bin_px) * (height // bin_px)
