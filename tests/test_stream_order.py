"""The order of training: keyed, complete, in shares as asked, and the same however it is split."""

from __future__ import annotations

from itertools import chain, islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.order import SlabOrder, TrainingBatches, brain_visits, keyed_permutation, named_weights
from tera_mind.errors import InputError


def drawn(batches, workers, epoch=0, step=0):
    """What a rank sees when its steps are dealt out to workers and collected in turn, as a DataLoader does."""
    batches.start_at(epoch, step)
    parts = [list(islice(batches(), worker, None, max(1, workers))) for worker in range(max(1, workers))]
    return [parts[turn % len(parts)][turn // len(parts)] for turn in range(sum(map(len, parts)))]


@settings(max_examples=40, deadline=None)
@given(
    slabs=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    batch_size=st.integers(1, 5),
    ranks=st.integers(1, 4),
    workers=st.integers(0, 3),
    crops=st.integers(1, 4),
    epochs=st.integers(1, 3),
)
def test_every_slab_once_an_epoch_and_equal_steps(slabs, batch_size, ranks, workers, crops, epochs):
    order = SlabOrder(tuple(slabs), tuple(slabs), seed=7)
    parts = [TrainingBatches(order, batch_size, crops, rank=rank, ranks=ranks) for rank in range(ranks)]
    single = TrainingBatches(order, batch_size * ranks, crops)
    numbers = []
    for epoch in range(epochs):
        rows = [drawn(part, workers, epoch) for part in parts]
        assert {len(row) for row in rows} == {len(single)} == {-(-sum(slabs) * crops // (batch_size * ranks))}
        assert {len(step) for row in rows for step in row} == {batch_size}
        together = [list(chain(*step)) for step in zip(*rows, strict=True)]
        assert together == drawn(single, 0, epoch)  # one process with the same global batch sees the same
        draws = list(chain(*together))
        numbers += [draw.number for draw in draws]
        visits = np.bincount([draw.slab for draw in draws[: sum(slabs) * crops]], minlength=sum(slabs))
        assert set(visits) == {crops}
        # the rest is repeated, less than a global batch of it, as stated
        assert len(draws) - sum(slabs) * crops == single.repeated < batch_size * ranks
        assert [d.slab for d in draws[sum(slabs) * crops :]] == [
            draws[k % (sum(slabs) * crops)].slab for k in range(single.repeated)
        ]
    assert numbers == list(range(len(numbers)))


@settings(max_examples=30, deadline=None)
@given(
    slabs=st.integers(1, 9),
    batch_size=st.integers(1, 4),
    crops=st.integers(1, 3),
    steps=st.integers(1, 7),
    epochs=st.integers(1, 4),
)
def test_short_epochs_go_on_where_the_last_ended(slabs, batch_size, crops, steps, epochs):
    order = SlabOrder((slabs,), (slabs,), seed=1)
    short, whole = TrainingBatches(order, batch_size, crops, steps), TrainingBatches(order, batch_size, crops)
    seen = [step for epoch in range(epochs) for step in drawn(short, 0, epoch)]
    passes = chain.from_iterable(drawn(whole, 0, epoch) for epoch in range(epochs * steps))
    assert seen == list(islice(passes, epochs * steps))


def test_order_depends_on_seed_and_pass_and_visits_crops_in_a_row():
    def slabs(seed, epoch):
        batches = TrainingBatches(SlabOrder((40,), (40,), seed), 8, 4)
        return [draw.slab for step in drawn(batches, 0, epoch) for draw in step]

    one = slabs(0, 0)
    assert one != slabs(0, 1)
    assert one != slabs(1, 0)
    assert one == slabs(0, 0)
    assert [set(one[k : k + 4]) for k in range(0, 160, 4)] == [{slab} for slab in one[::4]]
    assert one[::4] != sorted(one[::4])


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 10**6))
def test_the_permutation_is_one_and_can_be_asked_for_parts(size, key):
    everything = keyed_permutation(np.arange(size), size, (key, 1))
    assert sorted(everything.tolist()) == list(range(size))
    some = np.array([0, size // 2, size - 1])
    assert keyed_permutation(some, size, (key, 1)).tolist() == everything[some].tolist()


def test_the_permutation_is_even():
    """Every element comes to every place about equally often, and neighbours part."""
    tables = np.stack([keyed_permutation(np.arange(12), 12, (key,)) for key in range(600)])
    counts = np.stack([np.bincount(column, minlength=12) for column in tables.T])
    assert abs(counts - 50).max() < 6 * np.sqrt(50)
    follows = (np.diff(tables, axis=1) == 1).mean()
    assert abs(follows - 1 / 12) < 0.02


def test_a_brain_of_millions_of_slabs_needs_no_table_of_them():
    order = SlabOrder((6_000_000, 5_000_000), (6_000_000, 5_000_000), seed=0)
    batches = TrainingBatches(order, 32, 4, rank=3, ranks=8)
    batches.start_at(2, 100_000)
    draws = next(iter(batches()))
    assert len({draw.slab for draw in draws}) == 8
    assert max(draw.slab for draw in draws) > 1_000_000


@settings(max_examples=20, deadline=None)
@given(
    brains=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 5)), min_size=1, max_size=3).filter(
        lambda brains: any(weight for _, weight in brains)
    ),
    crops=st.integers(1, 3),
)
def test_brains_are_mixed_in_the_shares_asked_for(brains, crops):
    slabs, weights = zip(*brains, strict=True)
    visits = brain_visits(slabs, [float(weight) for weight in weights])
    total = sum(slabs)
    assert sum(visits) == total
    order = SlabOrder(slabs, tuple(visits), seed=3)
    edges = np.cumsum((0, *slabs))
    seen = np.zeros(total, int)
    for epoch in range(2):
        batches = TrainingBatches(order, 1, crops)
        drawn_slabs = np.array([draw.slab for step in drawn(batches, 0, epoch) for draw in step])
        shares = np.histogram(drawn_slabs, edges)[0] / len(drawn_slabs)
        assert abs(shares - np.array(weights) / sum(weights)).max() <= 1 / total
        seen += np.bincount(drawn_slabs[::crops], minlength=total)
    for start, stop in pairwise(edges.tolist()):  # inside a brain, all slabs before any comes again
        assert seen[start:stop].max() - seen[start:stop].min() <= 1


def test_weights_by_name_or_list_and_bad_ones():
    assert named_weights(["main", "supp"], {"supp": 3.0, "main": 1.0}) == [1.0, 3.0]
    assert named_weights(["main", "supp"], [1.0, 3.0]) == [1.0, 3.0]
    assert named_weights(["main", "supp"], None) is None
    for weights in ({"main": 1.0}, {"main": 1.0, "supp": 1.0, "x": 1.0}, [1.0]):
        with pytest.raises(InputError, match="main, supp"):
            named_weights(["main", "supp"], weights)
    for weights in ([0.0, 0.0], [-1.0, 2.0], [float("nan"), 1.0]):
        with pytest.raises(InputError, match="at least 0 and not all 0"):
            brain_visits([4, 4], weights)
    with pytest.raises(InputError, match="a brain without slabs"):
        brain_visits([4, 0], [1.0, 1.0])


def test_position_is_shared_with_living_workers():
    batches = TrainingBatches(SlabOrder((4,), (4,), 0), 1, 1)
    assert batches._position.is_shared()
    assert torch.equal(batches._position, torch.zeros(2, dtype=torch.int64))
