"""What each of two processes does in tests/training/test_processes.py; started there by torchrun.

Every scene trains the toy model on this process's half of each step's batches and writes what came out to
`<scene>.<rank>.json` in the folder given.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Generator, nn
from torch.distributed.tensor import DTensor

from longcat_tune.checkpoint.optimizer_file import read_optimizer
from longcat_tune.checkpoint.run_state import RunState, read_checkpoint, save_checkpoint
from longcat_tune.errors import DataError, DeviceError, InterruptedRunError
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.memory.sharding import BlockSharding
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import add_lora, lora_state
from longcat_tune.model.lora_targets import lora_target_modules
from longcat_tune.training.ema import Ema
from longcat_tune.training.evaluation import HeldOutClip
from longcat_tune.training.interfaces import LoopState
from longcat_tune.training.loop import run_loop
from longcat_tune.training.parts import LoopParts
from longcat_tune.training.update import make_step
from tests.training.toys import (
    Filling,
    Recorder,
    ToyGroup,
    ToyModel,
    groups,
    held_out,
    parts,
    recorder,
    settings,
    weights,
    with_latents,
)

ACCUMULATION = 2
WEIGHTS = "weights.safetensors"


def halves(rank: int, start: int = 0) -> Iterator[ToyGroup]:
    """Every second batch of the groups that one process takes whole."""
    for group in groups(start, accumulation=2 * ACCUMULATION):
        yield replace(group, batches=group.batches[rank::2])


def transformer(*, sharded: bool) -> LongCatVideoTransformer:
    """Two frozen blocks with LoRA on all layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LongCatVideoTransformer(4, 4, 32, 2, 2, 6, 4, 16, 16)
    model.requires_grad_(requires_grad=False)
    if sharded:
        sharding = BlockSharding(torch.device("cpu"))
        for block in model.blocks:
            sharding.add(block)
        sharding.enclose(model, model.blocks)
    names = lora_target_modules(model, "all-linear")
    add_lora(model, targets=names, rank=2, alpha=4, dropout=0.2, generator=Generator().manual_seed(1))
    enable_recompute(model.blocks)
    return model


def held_here(module: nn.Module) -> int:
    """Bytes of the frozen weights that lie in this process."""
    frozen = (weight for weight in module.parameters() if not weight.requires_grad)
    return sum((weight.to_local() if isinstance(weight, DTensor) else weight).nbytes for weight in frozen)


class Scenes:
    """All of them, in one process."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.rank = accelerator.process_index

    def made(self, model: nn.Module | None = None, *, completed: int = 0) -> LoopParts:
        return replace(parts(model, completed=completed), accelerator=self.accelerator)

    def tell(self, scene: str, seen: Recorder, made: LoopParts, **more: Any) -> None:
        told = {
            "weights": weights(made.model).tolist(),
            "losses": [metrics.loss for metrics in seen.metrics],
            "grad_norms": [metrics.grad_norm for metrics in seen.metrics],
            "samples": [metrics.samples for metrics in seen.metrics],
            "calls": seen.calls,
            "events": seen.events,
            **more,
        }
        (self.folder / f"{scene}.{self.rank}.json").write_text(json.dumps(told))

    def plain(self) -> None:
        seen, made = recorder(), self.made()
        made = replace(made, ema=Ema(made.model.named_parameters(), decay=0.9))
        run_loop(
            made,
            halves(self.rank),
            settings=settings(3, validate_first=True, save_every=2),
            hooks=seen.hooks(),
        )
        assert made.ema is not None
        with made.ema.swapped_in():
            average = weights(made.model).tolist()
        self.tell("plain", seen, made, average=average)

    def evaluated(self) -> None:
        """Three clips for two processes; the second cannot read its share of the second evaluation."""
        clips = tuple(held_out().clips())
        calls = count(1)

        def share() -> tuple[HeldOutClip, ...]:
            if next(calls) == 2 and self.rank == 1:
                raise DataError("cache file x is missing")
            return clips[self.rank :: 2]

        seen, made = recorder(), self.made()
        what = replace(held_out(), clips=share)
        end = run_loop(made, halves(self.rank), settings=settings(1), hooks=seen.hooks(), held_out=what)
        assert end.best is not None
        self.tell("evaluated", seen, made, best=end.best.loss)

    def stopped(self) -> None:
        """A signal reaches the second process only."""
        seen, made = recorder(), self.made()

        def signalled() -> Iterator[ToyGroup]:
            for number, group in enumerate(halves(self.rank)):
                if number == 1 and self.rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield group

        message = ""
        try:
            run_loop(made, signalled(), settings=settings(9), hooks=seen.hooks())
        except InterruptedRunError as error:
            message = str(error)
        self.tell("stopped", seen, made, message=message)

    def full(self) -> None:
        """The second process has no memory for step 2."""
        seen = recorder()
        made = self.made(Filling(ACCUMULATION + 2) if self.rank == 1 else ToyModel())
        end = run_loop(made, halves(self.rank), settings=settings(3), hooks=seen.hooks())
        self.tell("full", seen, made, step=end.step)

    def poisoned(self) -> None:
        """The second process meets a clip whose loss is no number."""
        seen, made = recorder(), self.made()

        def bad() -> Iterator[ToyGroup]:
            for number, group in enumerate(halves(self.rank)):
                batch = group.batches[0]
                clean = number != 1 or self.rank != 1
                yield group if clean else replace(group, batches=(batch, with_latents(batch, float("nan"))))

        message = ""
        try:
            run_loop(made, bad(), settings=settings(9), hooks=seen.hooks())
        except DataError as error:
            message = str(error)
        self.tell("poisoned", seen, made, message=message)

    def resumed(self) -> None:
        """Two steps, a checkpoint, and two more in fresh parts."""
        seen, first = recorder(), self.made()

        def save(state: LoopState) -> None:
            save_checkpoint(
                self.folder,
                RunState(state.step, state.epoch, state.cursor),
                first.optimizer,
                write_files=lambda part: save_file(dict(first.model.state_dict()), part / WEIGHTS),
                total_limit=1,
            )

        run_loop(first, halves(self.rank), settings=settings(2), hooks=replace(seen.hooks(), save=save))
        self.accelerator.wait_for_everyone()
        second = self.made(completed=2)
        folder = self.folder / "checkpoint-000002"
        state = read_checkpoint(folder).state
        read_optimizer(folder, second.optimizer)
        second.model.load_state_dict(load_file(folder / WEIGHTS))
        start = LoopState(state.step, state.epoch, state.cursor)
        run_loop(
            second,
            halves(self.rank, start.cursor[0]),
            settings=settings(4),
            hooks=seen.hooks(),
            start=start,
        )
        whole, unbroken = recorder(), self.made()
        run_loop(unbroken, halves(self.rank), settings=settings(4), hooks=whole.hooks())
        equal = torch.equal(weights(unbroken.model), weights(second.model))
        self.tell("resumed", seen, second, equal=equal, expected=[m.loss for m in whole.metrics])

    def shared_out(self) -> None:
        """A base that each process holds half of, against one that each holds whole."""
        results = []
        for sharded in (False, True):
            model = transformer(sharded=sharded)
            clips = tuple(held_out().clips())
            share = clips if sharded else clips[self.rank :: 2]
            seen, made = recorder(), replace(self.made(model), lockstep=sharded)
            run_loop(
                made,
                halves(self.rank),
                settings=settings(2),
                hooks=seen.hooks(),
                held_out=replace(held_out(), clips=lambda share=share: share),
            )
            losses = [fields["losses"] for name, fields in seen.events if name == "evaluation"]
            results.append((seen, made, losses))
        (_, whole, expected), (seen, made, losses) = results
        adapter, other = lora_state(made.model), lora_state(whole.model)
        self.tell(
            "shared_out",
            seen,
            made,
            equal=all(torch.equal(adapter[name], other[name]) for name in other),
            learned=any(weight.abs().sum() > 0 for name, weight in adapter.items() if "lora_B" in name),
            evaluated=losses == expected,
            held=held_here(made.model.blocks) / held_here(whole.model.blocks),
        )

    def shared_out_and_full(self) -> None:
        """No memory in one process: it ends, for the launcher to end the others."""
        made = replace(self.made(Filling(1)), lockstep=True)
        message = ""
        try:
            make_step(made, next(halves(self.rank)), 1, settings(1))
        except DeviceError as error:
            message = str(error)
        self.tell("shared_out_and_full", recorder(), made, message=message)


def main() -> None:
    scenes = Scenes(Path(sys.argv[1]), Accelerator(cpu=True))
    made = (
        scenes.plain,
        scenes.evaluated,
        scenes.stopped,
        scenes.full,
        scenes.poisoned,
        scenes.resumed,
        scenes.shared_out,
        scenes.shared_out_and_full,
    )
    for scene in made:
        scene()
    scenes.accelerator.end_training()


if __name__ == "__main__":
    main()
