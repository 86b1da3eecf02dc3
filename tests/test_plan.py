"""Plans: units fill the volume in whole shards, cost what a sweep computes, and keep all workers busy."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_blocks import TinyBlocks, tiny_counts

from tera_mind.errors import FormatError, InputError
from tera_mind.geometry import Box, section_groups
from tera_mind.sampling.cost import BandCost
from tera_mind.sampling.domain import Domain
from tera_mind.sampling.plain import SamplerSettings
from tera_mind.sampling.plan import Plan, Planner, make_plan
from tera_mind.sampling.wavefront import sweep

#: of a network with patches of 64 px, as the published one
PUBLISHED = {"patch_px": 64, "halo_px": 32, "bin_px": 16, "channels": 4, "genes": 500}
GROUPS = section_groups(50, 4)


def ellipses(rows: int, columns: int) -> list[np.ndarray]:
    """Tissue of 25 groups of a brain: small at both ends."""
    y, x = np.mgrid[:rows, :columns]
    sizes = 0.47 * np.sin(np.pi * (np.arange(25) + 3) / 30)
    return [((y / rows - 0.5) / s) ** 2 + ((x / columns - 0.5) / s) ** 2 < 1 for s in sizes]


def published(share: str = "whole", scale: int = 1) -> Planner:
    region = Box(0, 1144 // scale * 64, 0, 1656 // scale * 64)
    whole = Domain.whole(region, 64)
    masks = ellipses(whole.rows, whole.columns)
    domains = [whole] * 25 if share == "whole" else [Domain(region, 64, mask) for mask in masks]
    return Planner(region, GROUPS, domains, SamplerSettings("epsilon", 15), **PUBLISHED)


def check_units(plan: Plan, rows: int, shard_rows: int) -> None:
    for group in range(len(plan.groups)):
        bands = sorted(unit.rows for unit in plan.units if unit.group == group)
        assert bands[0][0] == 0
        assert bands[-1][1] == rows
        assert all(a[1] == b[0] and b[0] % shard_rows == 0 for a, b in itertools.pairwise(bands))
    assert [unit.index for unit in plan.units] == list(range(len(plan.units)))
    sizes = [unit.blocks for unit in plan.units]
    assert sizes == sorted(sizes, reverse=True), "the largest first"


@pytest.mark.parametrize("share", ["whole", "tissue"])
def test_the_published_brain_is_balanced(share: str) -> None:
    """25 groups of 1,144 x 1,656 patches: 8 workers busy with necessary work for 95 % of the time."""
    planner = published(share)
    plan = planner.plan(8)
    check_units(plan, 1144, 32)
    assert plan.balance(8) * (1 - plan.redundancy) >= 0.95
    alone = planner.plan(1)
    assert (len(alone.units), alone.redundancy, alone.balance(1)) == (25, 0.0, 1.0)
    # whole groups mixed with split ones, not all cut alike
    bands = np.bincount([unit.group for unit in plan.units])
    assert bands.min() == 1 < bands.max()
    equal = max(unit.blocks for unit in alone.units) * 4  # 25 whole groups on 8 workers: someone has four
    assert plan.makespan(8) < equal


def test_the_assignment_is_everyones_next_unit() -> None:
    plan = published("tissue", scale=8).plan(5)
    work = plan.assignment(5)
    assert sorted(unit.index for units in work for unit in units) == list(range(len(plan.units)))
    loads = [sum(unit.blocks for unit in units) for units in work]
    assert plan.makespan(5) == max(loads)
    assert plan.balance(5) == pytest.approx(sum(loads) / 5 / max(loads))
    assert plan.blocks == sum(loads)
    assert plan.redundancy == pytest.approx(1 - plan.necessary_blocks / plan.blocks)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    steps=st.sampled_from([1, 4, 15]),
    halo_px=st.sampled_from([4, 8, 16]),
    block=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    first=st.integers(0, 10),
    height=st.integers(1, 11),
    share=st.sampled_from([0.02, 0.3, 1.0]),
)
def test_blocks_are_those_that_a_sweep_computes(steps, halo_px, block, first, height, share) -> None:
    region = Box(0, 11 * 8, 0, 13 * 8)
    domain = Domain(region, 8, np.random.default_rng(steps).random((11, 13)) < share)
    given = SamplerSettings("v", steps, "ddim", 0.0, *block)
    rows = (first, min(11, first + height)) if first < 11 else (0, 11)
    done: list[int] = []
    noise = lambda _step, box: torch.zeros(2, box.height, box.width)  # noqa: E731
    network = TinyBlocks(halo_px=halo_px, dtype=torch.float32)
    for _ in sweep(network, tiny_counts, noise, domain, given, rows, on_block=lambda: done.append(1)):
        pass
    assert int(BandCost(domain, given, halo_px).blocks(rows).sum()) == len(done) == len(network.passes)


def small(**changes: object) -> Plan:
    region = Box(5, 5 + 70 * 16, 0, 20 * 16)
    domain = Domain.whole(region, 16)
    sizes = {"patch_px": 16, "halo_px": 8, "bin_px": 8, "channels": 2, "genes": 3, "shard_px": 256, **changes}
    return make_plan(region, GROUPS[:2], [domain] * 2, SamplerSettings("v", 4), **sizes)


def test_bytes_flop_and_boxes() -> None:
    plan = small(workers=5, block_multiply_adds=1000, gene_bytes_px=0.5)
    check_units(plan, 70, 16)
    assert plan.flop == 2000 * plan.blocks
    assert plan.bytes_written == 2 * 2 * 70 * 20 * 256
    assert plan.bytes_read >= 0.5 * 2 * 4 * 70 * 20 * 256
    assert {plan.box(unit).height // 16 for unit in plan.units} == {r1 - r0 for r0, r1 in (u.rows for u in plan.units)}
    assert min(plan.box(unit).y0 for unit in plan.units) == 5


def test_memory_splits_groups_or_is_refused() -> None:
    alone = small()
    assert len(alone.units) == 2
    tight = small(memory_bytes=alone.memory_bytes * 2 // 3)
    assert tight.memory_bytes <= alone.memory_bytes * 2 // 3
    assert len(tight.units) > 2
    check_units(tight, 70, 16)
    with pytest.raises(InputError, match=r"one row of shards needs .* give more memory"):
        small(memory_bytes=1000)


def test_a_plan_survives_json() -> None:
    plan = small(workers=3)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    for broken in (
        {},
        {**plan.to_json(), "units": [[1, 2]]},
        {**plan.to_json(), "settings": {"prediction": "v", "x": 1}},
    ):
        with pytest.raises(FormatError, match="expected a plan"):
            Plan.from_json(broken)


def test_nothing_active_is_a_plan_without_work() -> None:
    region = Box(0, 320, 0, 320)
    domain = Domain(region, 16, np.zeros((20, 20), bool))
    sizes = {"patch_px": 16, "halo_px": 8, "bin_px": 8, "channels": 2, "genes": 3}
    plan = make_plan(region, GROUPS[:1], [domain], SamplerSettings("v", 4), workers=3, **sizes)
    assert (plan.blocks, plan.redundancy, plan.balance(3), plan.bytes_written) == (0, 0.0, 1.0, 0)
    assert plan.units[0].rows == (0, 20)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"workers": 0}, "at least one worker"), ({"shard_px": 300}, "whole number of chunks"), ({"patch_px": 8}, "8 px")],
)
def test_what_does_not_fit_is_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        small(**changes)
