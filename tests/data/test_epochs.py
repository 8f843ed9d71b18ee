"""Epochs follow the formula, phases begin and end at their very steps, and every step has its place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longcat_tune.data.epochs import Cursor, DatasetBatches, EpochPlan, shared_out
from longcat_tune.errors import DataError

STEPS = 60


@st.composite
def datasets(draw) -> DatasetBatches:
    start = draw(st.integers(0, 20))
    end = draw(st.none() | st.integers(max(1, start), 40))
    return DatasetBatches(draw(st.integers(0, 9)), draw(st.sampled_from((0.01, 0.3, 0.5, 1.0))), start, end)


@st.composite
def plans(draw) -> EpochPlan:
    """Plans that are never without a dataset: the first one is always used."""
    always = DatasetBatches(draw(st.integers(1, 9)), end_step=draw(st.none() | st.just(STEPS)))
    others = draw(st.lists(datasets(), max_size=4))
    return EpochPlan([always, *others], draw(st.integers(1, 4)), draw(st.integers(1, 3)))


def taken_steps(plan: EpochPlan) -> list[tuple[int, tuple[int, ...]]]:
    """Epoch and datasets of every step, by walking through the epochs."""
    steps: list[tuple[int, tuple[int, ...]]] = []
    epoch = 0
    while len(steps) < STEPS:
        place = plan.locate(epoch)
        assert place.first_step == len(steps) + 1
        steps += [(epoch, place.phase.active)] * place.steps
        epoch += 1
    return steps[:STEPS]


def test_an_epoch_of_all_batches_follows_the_formula():
    plan = EpochPlan([DatasetBatches(7), DatasetBatches(4)], accumulation=3)
    assert [phase.steps_per_epoch for phase in plan.phases] == [4]
    assert (plan.steps_in(1), plan.steps_in(5), plan.num_epochs) == (4, 20, None)


@pytest.mark.parametrize(
    ("batches", "probability", "per_epoch"),
    [
        (10, 1, 10),
        (10, 0.5, 5),
        (9, 0.5, 5),
        (10, 0.24, 2),
        (10, 0.26, 3),
        (10, 0.01, 1),
        (1, 0.5, 1),
        (0, 1, 0),
    ],
)
def test_an_epoch_takes_the_nearest_share_and_one_batch_at_least(batches, probability, per_epoch):
    assert DatasetBatches(batches, probability).per_epoch == per_epoch


@pytest.mark.parametrize(("world_size", "batches", "steps"), [(1, 11, 6), (2, 6, 3), (3, 4, 2), (8, 2, 1)])
def test_processes_take_the_same_number_of_batches(world_size, batches, steps):
    [phase] = EpochPlan([DatasetBatches(11)], accumulation=2, world_size=world_size).phases
    assert (phase.batches_per_epoch, phase.steps_per_epoch) == (batches, steps)


def test_datasets_are_first_and_last_used_at_their_steps():
    plan = EpochPlan(
        [DatasetBatches(4), DatasetBatches(3, start_step=11, end_step=24), DatasetBatches(6, end_step=20)],
        accumulation=2,
    )
    shown = [(phase.first_step, phase.last_step, phase.active) for phase in plan.phases]
    assert shown == [(1, 10, (0, 2)), (11, 20, (0, 1, 2)), (21, 24, (0, 1)), (25, None, (0,))]
    assert [phase.steps_per_epoch for phase in plan.phases] == [5, 7, 4, 2]
    assert [phase.first_epoch for phase in plan.phases] == [0, 2, 4, 5]
    assert [plan.first_epoch(number) for number in (0, 1, 2)] == [0, 2, 0]


def test_an_epoch_is_cut_short_where_a_dataset_begins():
    plan = EpochPlan([DatasetBatches(5), DatasetBatches(2, start_step=8)], accumulation=1)
    places = [plan.locate(epoch) for epoch in range(4)]
    assert [(place.first_step, place.steps, place.batches) for place in places] == [
        (1, 5, 5),
        (6, 2, 2),
        (8, 7, 7),
        (15, 7, 7),
    ]
    assert [place.index for place in places] == [0, 1, 0, 1]
    assert [plan.steps_in(number) for number in (1, 2, 3)] == [5, 7, 14]


@given(plans())
@settings(max_examples=60, deadline=None)
def test_every_step_uses_exactly_the_datasets_that_are_active(plan):
    for step, (epoch, active) in enumerate(taken_steps(plan), start=1):
        assert active == tuple(n for n, one in enumerate(plan.datasets) if one.is_active(step))
        assert plan.cursor_at(step - 1).epoch == epoch


@given(plans())
@settings(max_examples=60, deadline=None)
def test_the_place_of_a_step_is_found_without_walking_there(plan):
    cursor = Cursor(0, 0)
    for step in range(STEPS):
        assert plan.cursor_at(step) == cursor
        epoch, batch = cursor
        behind = batch + plan.accumulation
        whole = behind < plan.locate(epoch).batches
        cursor = Cursor(epoch, behind) if whole else Cursor(epoch + 1, 0)
    if plan.num_epochs is not None:
        assert plan.cursor_at(STEPS) == plan.cursor_at(STEPS + 9) == cursor == (plan.num_epochs, 0)


def test_nothing_comes_after_the_last_step():
    plan = EpochPlan([DatasetBatches(4, end_step=10)], accumulation=1)
    assert plan.num_epochs == 3
    assert [plan.locate(epoch).steps for epoch in range(5)] == [4, 4, 2, 0, 0]
    assert [plan.locate(epoch).batches for epoch in range(5)] == [4, 4, 2, 0, 0]
    assert plan.steps_in(3) == 10
    plan.require_steps(10)


def test_a_run_longer_than_its_datasets_is_refused():
    plan = EpochPlan([DatasetBatches(4, end_step=10), DatasetBatches(2, end_step=6)], accumulation=1)
    rest = (
        "is more than the datasets give: their last end_step is 10 (epochs: 2); raise or remove it, or lower"
    )
    with pytest.raises(DataError) as steps:
        plan.require_steps(11)
    assert str(steps.value) == f"max_train_steps (11) {rest} max_train_steps"
    with pytest.raises(DataError) as epochs:
        plan.steps_in(3)
    assert str(epochs.value) == f"num_train_epochs (3) {rest} num_train_epochs"
    EpochPlan([DatasetBatches(4)], accumulation=1).require_steps(10**9)


@pytest.mark.parametrize(
    ("start_step", "steps", "last"), [(200, "steps 101 to 199 use", 199), (102, "step 101 uses", 101)]
)
def test_a_gap_between_datasets_is_refused_with_both_ways_out(start_step, steps, last):
    with pytest.raises(DataError) as caught:
        EpochPlan([DatasetBatches(4, end_step=100), DatasetBatches(4, start_step=start_step)], accumulation=1)
    assert str(caught.value) == (
        f"{steps} no dataset, and every step needs one: the last one before ends with end_step 100 and the "
        f"next begins with start_step {start_step}; raise that end_step to {last} or lower that start_step "
        "to 101"
    )


def test_a_run_whose_first_step_has_no_dataset_is_refused():
    with pytest.raises(DataError) as caught:
        EpochPlan([DatasetBatches(4, start_step=50), DatasetBatches(0)], accumulation=1)
    assert str(caught.value) == (
        "steps 1 to 49 use no dataset, and every step needs one: the next begins with start_step 50; lower "
        "that start_step to 1"
    )


@pytest.mark.parametrize("nothing", [[], [DatasetBatches(0)]])
def test_no_batches_at_all_are_refused(nothing):
    with pytest.raises(
        DataError, match="there are 0 batches to train on and every step needs one; add clips"
    ):
        EpochPlan(nothing, accumulation=1)


def test_a_dataset_without_batches_begins_no_phase():
    plan = EpochPlan([DatasetBatches(4), DatasetBatches(0, start_step=5, end_step=9)], accumulation=1)
    assert [phase.active for phase in plan.phases] == [(0,)]


@given(
    st.integers(0, 50), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0, 1, exclude_max=True)
)
def test_shares_are_rounded_up_or_down_and_add_up(batches, weights, turn):
    shares = [weight / sum(weights) for weight in weights]
    counts = shared_out(batches, shares, turn=turn)
    assert sum(counts) == batches
    assert all(abs(count - batches * share) < 1 + 1e-9 for count, share in zip(counts, shares, strict=True))


def test_a_turn_decides_which_way_a_share_is_rounded():
    turns = [number / 1000 for number in range(1000)]
    found = [shared_out(1, (0.7, 0.2, 0.1), turn=turn) for turn in turns]
    assert [sum(column) for column in zip(*found, strict=True)] == pytest.approx([700, 200, 100], abs=2)
