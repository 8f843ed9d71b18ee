"""Checkpoints are complete or absent, whatever happens while they are written, and bring everything back."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Generator, nn
from torch.optim import SGD, AdamW, Optimizer

from longcat_tune.checkpoint.optimizer_file import read_optimizer
from longcat_tune.checkpoint.run_state import (
    RunState,
    find_checkpoint,
    latest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from longcat_tune.errors import CheckpointError
from longcat_tune.training.ema import EMA_FILE, Ema
from longcat_tune.training.optimizers import OptimizerName, OptimizerSettings, build_optimizer
from longcat_tune.types import BestEvaluation
from tests.checkpoint.kills import kill_at, moments

Build = Callable[[nn.Module], Optimizer]
LORA = "pytorch_lora_weights.safetensors"


def adamw(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=1e-2)


def two_groups(model: nn.Module) -> Optimizer:
    weight, bias = model.parameters()
    return AdamW([{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "lr": 1e-3}], amsgrad=True)


def built(name: OptimizerName) -> Build:
    settings = OptimizerSettings(name, learning_rate=1.0 if name == "prodigy" else 1e-2)
    return lambda model: build_optimizer(settings, model.parameters(), is_up=lambda _: False)


class StateWithinState(SGD):
    """Keeps a state within its state, as bitsandbytes does."""

    def step(self, closure: None = None) -> None:
        super().step()
        for state in self.state.values():
            inner = state.setdefault("inner", {"codes": torch.zeros(3), "deep": {"n": 0}})
            inner["codes"] += 1
            inner["deep"]["n"] += 1


class SharedTable(SGD):
    """Lets all parameters share a tensor of its state, as 8-bit optimizers do."""

    def step(self, closure: None = None) -> None:
        super().step()
        table = torch.arange(4.0)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter].setdefault("table", table)


OPTIMIZERS: dict[str, Build] = {
    "shared table": lambda model: SharedTable(model.parameters(), lr=1e-2, momentum=0.9),
    "adamw": adamw,
    "two groups": two_groups,
    "sgd": lambda model: SGD(model.parameters(), lr=1e-2, momentum=0.9),
    "adafactor": built("adafactor"),
    "prodigy": built("prodigy"),
    # The matrix by Muon, the vector by AdamW.
    "muon": built("muon"),
}


def toy() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def step(model: nn.Module, optimizer: Optimizer, number: int) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 5, generator=Generator().manual_seed(number))).square().sum().backward()
    optimizer.step()


def save(
    output_dir: Path,
    number: int,
    model: nn.Module | None = None,
    optimizer: Optimizer | None = None,
    *,
    limit: int = 9,
) -> Path:
    model = model or toy()
    if optimizer is None:
        optimizer = adamw(model)
        step(model, optimizer, number)
    state = RunState(number, 1, (1, number), {"lora_rank": 4})
    ema = Ema(model.named_parameters(), decay=0.9)

    def write_files(folder: Path) -> None:
        save_file(dict(model.state_dict()), folder / LORA)
        ema.write(folder)

    return save_checkpoint(output_dir, state, optimizer, write_files=write_files, total_limit=limit)


def load_checkpoint(folder: Path, optimizer: Optimizer) -> RunState:
    """What a resumed run does."""
    state = read_checkpoint(folder).state
    read_optimizer(folder, optimizer)
    return state


def latest(output_dir: Path) -> Path | None:
    saved = latest_checkpoint(output_dir)
    return None if saved is None else saved.folder


def found(output_dir: Path, wanted: str) -> Path | None:
    saved = find_checkpoint(output_dir, wanted)
    return None if saved is None else saved.folder


def names(output_dir: Path) -> list[str]:
    return sorted(path.name for path in output_dir.iterdir())


@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_ten_steps_and_ten_resumed_ones_equal_twenty_to_the_bit(tmp_path: Path, build: Build) -> None:
    whole = toy()
    optimizer = build(whole)
    for number in range(20):
        step(whole, optimizer, number)
        if number == 9:
            save(tmp_path, 10, whole, optimizer)

    resumed = toy()
    optimizer = build(resumed)
    state = load_checkpoint(tmp_path / "checkpoint-000010", optimizer)
    resumed.load_state_dict(load_file(tmp_path / "checkpoint-000010" / LORA))
    assert state == RunState(10, 1, (1, 10), {"lora_rank": 4})
    for number in range(10, 20):
        step(resumed, optimizer, number)
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.bias, whole.bias)


def test_state_within_state_comes_back(tmp_path: Path) -> None:
    model = toy()
    optimizer = StateWithinState(model.parameters(), lr=1e-2, momentum=0.9)
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    folder = save(tmp_path, 2, model, optimizer)
    fresh = StateWithinState(model.parameters(), lr=1e-2, momentum=0.9)
    load_checkpoint(folder, fresh)
    for got, expected in zip(fresh.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(got["momentum_buffer"], expected["momentum_buffer"])
        assert got["inner"]["codes"].tolist() == [2, 2, 2]
        assert got["inner"]["deep"] == {"n": 2}


def test_state_of_eight_bits_comes_back_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")

    def large() -> nn.Linear:
        # Below 4,096 numbers it stays float32.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Linear(64, 128, bias=False)

    def stepped(model: nn.Linear, optimizer: Optimizer, first: int) -> None:
        for number in range(first, first + 3):
            generator = Generator().manual_seed(number)
            model.weight.grad = torch.randn(model.weight.shape, generator=generator)
            optimizer.step()

    build = built("adamw_8bit")
    whole = large()
    optimizer = build(whole)
    stepped(whole, optimizer, 0)
    assert {optimizer.state[whole.weight][name].dtype for name in ("state1", "state2")} == {torch.uint8}
    folder = save(tmp_path, 3, whole, optimizer)
    resumed = large()
    fresh = build(resumed)
    load_checkpoint(folder, fresh)
    resumed.load_state_dict(load_file(folder / LORA))
    stepped(whole, optimizer, 3)
    stepped(resumed, fresh, 3)
    assert torch.equal(whole.weight, resumed.weight)
    assert fresh.state[resumed.weight]["state1"].dtype == torch.uint8


def test_another_optimizer_s_state_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"is AdamW's, and this run's optimizer is SGD; resume with"):
        load_checkpoint(folder, SGD(toy().parameters(), lr=1e-2))


def test_the_best_evaluation_and_the_tracker_s_id_come_back(tmp_path: Path) -> None:
    best = BestEvaluation(40, 0.1 + 0.2, base_loss=0.5, last_step=45, identity="a1")
    state = RunState(50, 1, (1, 3), {"lora_rank": 4}, best, "run-7")
    folder = save_checkpoint(tmp_path, state, adamw(toy()), write_files=lambda folder: None, total_limit=1)
    assert read_checkpoint(folder).state == state


def test_a_checkpoint_of_the_first_schema_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    stored = json.loads((folder / "training_state.json").read_text())
    stored["schema"] = 1
    del stored["state"]["best"], stored["state"]["tracker_run_id"]
    (folder / "training_state.json").write_text(json.dumps(stored))
    assert latest(tmp_path) == folder
    assert read_checkpoint(folder).state == RunState(3, 1, (1, 3), {"lora_rank": 4})


def test_a_checkpoint_of_a_later_schema_is_skipped_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save(tmp_path, 3)
    text = (folder / "training_state.json").read_text()
    (folder / "training_state.json").write_text(text.replace('"schema": 2', '"schema": 3'))
    assert latest(tmp_path) is None
    assert caplog.messages[0].endswith(
        "is skipped: training_state.json has schema 3, but this version reads 1 and 2"
    )


def test_a_folder_holds_no_pickle_and_lists_its_files(tmp_path: Path) -> None:
    folder = save(tmp_path, 500)
    assert folder.name == "checkpoint-000500"
    expected = [EMA_FILE, "optimizer.json", "optimizer.safetensors", LORA, "training_state.json"]
    assert names(folder) == expected
    stored = json.loads((folder / "training_state.json").read_text())
    assert stored["files"].keys() == set(names(folder)) - {"training_state.json"}
    assert stored["files"][LORA]["bytes"] == (folder / LORA).stat().st_size
    assert names(tmp_path) == ["checkpoint-000500"]


def test_what_the_config_sets_is_not_overruled_but_running_values_come_back(tmp_path: Path) -> None:
    model = toy()
    optimizer = adamw(model)
    optimizer.param_groups[0]["d_estimate"] = 0.125
    save(tmp_path, 1, model, optimizer)
    changed = AdamW(model.parameters(), lr=5e-5, betas=(0.5, 0.6), weight_decay=0.3)
    changed.param_groups[0]["d_estimate"] = 1e-6
    load_checkpoint(tmp_path / "checkpoint-000001", changed)
    group = changed.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (5e-5, (0.5, 0.6), 0.3)
    assert group["d_estimate"] == 0.125


def test_an_optimizer_over_other_parameters_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"belongs to 2 parameters, which differ .* same lora_rank"):
        load_checkpoint(folder, adamw(nn.Linear(5, 4)))


def delete(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-3])


def zero_tail(folder: Path) -> None:
    content = (folder / LORA).read_bytes()
    (folder / LORA).write_bytes(content[:-16] + bytes(16))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (delete("training_state.json"), r"training_state\.json is missing"),
        (truncate("training_state.json"), r"training_state\.json is damaged"),
        (delete("optimizer.safetensors"), r"optimizer\.safetensors is missing"),
        (truncate("optimizer.json"), r"optimizer\.json is damaged"),
        (zero_tail, r"pytorch_lora_weights\.safetensors is damaged"),
    ],
)
def test_a_damaged_folder_is_named_and_skipped_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], problem: str
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    assert latest(tmp_path) == newest
    damage(newest)
    with caplog.at_level(logging.WARNING):
        assert latest(tmp_path) == tmp_path / "checkpoint-000001"
    (record,) = caplog.records
    assert str(newest) in record.getMessage()
    optimizer = adamw(toy())
    with pytest.raises(CheckpointError, match=problem) as caught:
        load_checkpoint(newest, optimizer)
    assert "resume_from_checkpoint: latest" in str(caught.value)
    assert optimizer.state_dict()["state"] == {}


def test_resume_from_checkpoint_takes_latest_a_name_or_a_path(tmp_path: Path) -> None:
    assert found(tmp_path / "not yet", "latest") is None
    first, second = save(tmp_path, 1), save(tmp_path, 20)
    assert found(tmp_path, "latest") == second
    assert found(tmp_path, "checkpoint-000020") == second
    assert found(tmp_path / "elsewhere", str(first)) == first
    with pytest.raises(
        CheckpointError, match=r"checkpoint-3\) .* there are: checkpoint-000001, checkpoint-000020"
    ):
        found(tmp_path, "checkpoint-3")


def test_a_name_stands_for_what_was_made_from_it_too(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    taken = find_checkpoint(tmp_path, first.name)
    assert taken is not None
    # What a run saves that went on from there, after which the first is pruned.
    later = RunState(2, 1, (1, 2), origin=taken.state.origin)
    second = save_checkpoint(tmp_path, later, adamw(toy()), write_files=lambda folder: None, total_limit=1)
    assert names(tmp_path) == [second.name]
    assert found(tmp_path, first.name) == second
    assert found(tmp_path, str(first)) == second
    # What goes on from the latest keeps the name that it all began with.
    assert find_checkpoint(tmp_path, "latest") == find_checkpoint(tmp_path, first.name)


def test_checkpoints_of_two_runs_do_not_come_together(tmp_path: Path) -> None:
    first = save(tmp_path, 1)
    save(tmp_path, 20)
    with pytest.raises(CheckpointError, match=r"checkpoint-000001\) is not what .*move away those after it"):
        found(tmp_path, first.name)
    save(tmp_path / "other", 3)
    with pytest.raises(CheckpointError, match=r"move away those in output_dir"):
        found(tmp_path / "other", str(first))
    # A damaged one after it counts as little as it does for the latest.
    truncate(LORA)(tmp_path / "checkpoint-000020")
    assert found(tmp_path, first.name) == first


def test_pruning_keeps_the_newest_and_no_more_than_asked(tmp_path: Path) -> None:
    for number in (999_999, 1_000_000, 1_000_001):
        save(tmp_path, number, limit=2)
    assert names(tmp_path) == ["checkpoint-1000000", "checkpoint-1000001"]
    save(tmp_path, 7, limit=1)
    assert names(tmp_path) == ["checkpoint-000007"]


@pytest.mark.parametrize(
    ("limit", "left"), [(1, [2, 6]), (2, [2, 6]), (3, [2, 5, 6]), (9, [1, 2, 3, 4, 5, 6])]
)
def test_pruning_never_removes_the_best_or_the_last(tmp_path: Path, limit: int, left: list[int]) -> None:
    for number in range(1, 7):
        best = BestEvaluation(min(number, 2), 0.5)
        save_checkpoint(
            tmp_path,
            RunState(number, 0, (), best=best),
            adamw(toy()),
            write_files=lambda folder: None,
            total_limit=limit,
        )
    assert names(tmp_path) == [f"checkpoint-{number:06d}" for number in left]


def test_a_step_saved_again_replaces_what_was_there(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    truncate(LORA)(folder)
    assert save(tmp_path, 1) == folder
    assert latest(tmp_path) == folder
    assert names(tmp_path) == [folder.name]


def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 1, limit=1)

    def write_files(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, RunState(2, 0, ()), adamw(toy()), write_files=write_files, total_limit=1)
    message = str(caught.value)
    assert message.startswith("checkpoint of step 2 was not saved, earlier ones are intact: cannot write")
    assert "the disk is full (No space left on device); free some space" in message
    assert names(tmp_path) == ["checkpoint-000001"]
    load_checkpoint(tmp_path / "checkpoint-000001", adamw(toy()))


@pytest.mark.parametrize("limit", [100, 900, 1300])
def test_a_real_limit_of_the_system_in_any_file_is_survived(tmp_path: Path, limit: int) -> None:
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    model = toy()
    try:
        with pytest.raises(CheckpointError, match="the disk is full"):
            save_checkpoint(
                tmp_path,
                RunState(2, 0, (), {"long": "x" * 2000}),
                adamw(model),
                write_files=lambda folder: (folder / LORA).write_bytes(b"x" * 50),
                total_limit=1,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert names(tmp_path) == ["checkpoint-000001"]


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1, limit=2)
    save(tmp_path, 2, limit=2)
    unfinished, number = 0, 3
    for touch in moments(partial(save, tmp_path, number, limit=2)):
        kill_at(touch, partial(save, tmp_path, number + 1, limit=2))
        unfinished += any(".tmp-" in name for name in names(tmp_path))
        newest = latest(tmp_path)
        assert newest is not None
        load_checkpoint(newest, adamw(toy()))
        model = toy()
        model.load_state_dict(load_file(newest / LORA))
        Ema(model.named_parameters(), decay=0.9).resume(newest)
        assert (newest / EMA_FILE).is_file()
        assert newest.name == [name for name in names(tmp_path) if ".tmp-" not in name][-1]
        number = int(newest.name.split("-")[1])
    assert unfinished > 5
    save(tmp_path, 999_999, limit=1)
    assert names(tmp_path) == ["checkpoint-999999"]


def test_an_interruption_while_saving_leaves_nothing_unfinished(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, RunState(1, 0, ()), adamw(toy()), write_files=interrupted, total_limit=1)
    assert names(tmp_path) == []


def test_a_checkpoint_set_aside_for_its_successor_comes_back_after_a_kill(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    folder.rename(tmp_path / "checkpoint-000003.tmp-aside")
    assert found(tmp_path, "latest") == folder
    assert read_checkpoint(folder).state.step == 3
    assert save(tmp_path, 3) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000003"]
