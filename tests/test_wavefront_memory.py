"""What a sweep holds: as much as predicted, and no more in a wider region."""

from __future__ import annotations

import gc

import pytest
import torch
from tiny_blocks import TinyBlocks
from torch import Tensor

from tera_mind.geometry import Box
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.memory import memory_bytes
from tera_mind.sampling.plain import SamplerSettings
from tera_mind.sampling.skew import Skew
from tera_mind.sampling.wavefront import sweep

GENES, GENE_SECTIONS = 6, 2


def counts(box: Box) -> Tensor:
    return torch.ones(GENES, GENE_SECTIONS, box.height // 4, box.width // 4)


def noise(_step: int, box: Box) -> Tensor:
    return torch.zeros(2, box.height, box.width)


def alive() -> int:
    """Bytes of all tensors' memory, each counted once."""
    found = [thing for thing in gc.get_objects() if type(thing) is Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


class Watched(TinyBlocks):
    """Notes what is alive whenever a pass begins."""

    def __init__(self, halo_px: int) -> None:
        super().__init__(halo_px=halo_px, dtype=torch.float32)
        self.most = 0

    def predict(self, window: Tensor, t: Tensor, counts: Tensor) -> Tensor:
        self.most = max(self.most, alive())
        return window[..., self.halo_px : -self.halo_px, self.halo_px : -self.halo_px]


def peak(columns: int, given: SamplerSettings, rows: tuple[int, int], halo_px: int) -> tuple[int, int]:
    """Bytes at the worst moment of a sweep, and as predicted."""
    region = Box(0, 40 * 8, 0, columns * 8)
    network = Watched(halo_px)
    gc.collect()
    gc.freeze()  # what is there already is not looked through again
    try:
        for _ in sweep(network, counts, noise, Domain.whole(region, 8), given, rows):
            pass
    finally:
        gc.unfreeze()
    skew = Skew.of(given, 8, halo_px, (40, columns), rows)
    sizes = {"patch_px": 8, "halo_px": halo_px, "bin_px": 4, "channels": 2, "genes": GENES}
    return network.most, memory_bytes(skew, given, gene_sections=GENE_SECTIONS, **sizes)


@pytest.mark.parametrize(
    ("stepper", "block_rows", "micro_batch", "halo_px", "rows"),
    [
        ("ddim", 8, 1, 4, (0, 40)),
        ("ddim", 4, 4, 4, (8, 16)),
        ("dpm++", 4, 1, 4, (16, 24)),
        ("unipc", 8, 2, 4, (0, 40)),
        ("ddim", 4, 1, 16, (8, 24)),
    ],
)
def test_the_peak_is_as_predicted_whatever_the_width(
    stepper: str, block_rows: int, micro_batch: int, halo_px: int, rows: tuple[int, int]
) -> None:
    given = SamplerSettings("x0", 10, stepper, 0.0, block_rows, 5, micro_batch)
    narrow, predicted = peak(80, given, rows, halo_px)
    assert abs(narrow / predicted - 1) < 0.2, (narrow, predicted)
    if micro_batch == 4:
        wide, again = peak(160, given, rows, halo_px)
        assert again == predicted
        assert wide == pytest.approx(narrow, rel=0.05)
