"""What a run needs of a machine's memory and how long its steps take, before any weight is touched.

With `memory_plan: auto` it decides what leaves the device; what does not fit is refused with the change that
makes it fit. The arithmetic is memory's.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from longcat_tune.config.model import ModelSection
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import DeviceError
from longcat_tune.memory.budget import SPARE, Budget, Shortage, Where, gib, shortages
from longcat_tune.memory.budget_parts import encode_budget, text_budget
from longcat_tune.memory.budget_renders import (
    NO_LORA,
    evaluation_budget,
    refinement_budget,
    render_budget,
)
from longcat_tune.memory.budget_time import StepCost, step_cost
from longcat_tune.memory.budget_training import Placement, Training, training_budget
from longcat_tune.model.block_sparse.plan import MIN_PIXELS
from longcat_tune.runs.machine import Machine
from longcat_tune.runs.memory_renders import (
    batch_of,
    largest_renders,
    picture_of,
    refined_bucket,
    refinement_of,
    render_of,
)
from longcat_tune.runs.memory_sizes import RunSizes, placement_of
from longcat_tune.types import Bucket

logger = logging.getLogger(__name__)

CHUNKS = (8192, 4096, 2048, 1024)
"""Tokens at a time, that a plan tries for the feed-forward layers; smaller ones would slow the products."""

SMALLER_PRECISIONS = ("int8-quanto", "int4-quanto")
"""What a refusal proposes when no placement fits."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a run does with the machine's memory.

    Attributes:
        name: shown.
        budget: what it needs.
        cost: of a step, for training.
        certain: whether the run does it in any case; it encodes only what its caches lack, and renders that
            cannot be refined stay as they are.
        wanted: whether a plan that may choose makes room for it, though the run goes on without.
    """

    name: str
    budget: Budget
    cost: StepCost | None = None
    certain: bool = True
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a run needs, on a certain machine.

    Attributes:
        config: as asked, with what `memory_plan: auto` chose in place.
        machine: that it is planned for.
        placement: of weights and activations.
        parts: training on each bucket, evaluation, renders, and encoding.
        released: whether the released model's sizes stand for a checkpoint that is not here yet.
    """

    config: RunConfig
    machine: Machine
    placement: Placement
    parts: tuple[Part, ...]
    released: bool

    @property
    def shortages(self) -> tuple[Shortage, ...]:
        """The memories that do not suffice for what the run does in any case."""
        return _shortages(self.parts, self.machine)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the machine has no room for and need not do, if the caches are full; with its remedy."""
        return tuple(
            f"{_sentence(shortage)}; {_smaller_work(shortage)}"
            for part in self.parts
            if not part.certain
            for shortage in shortages([part.budget], self.machine.capacity)
        )

    def budget(self, part: Part) -> Budget:
        """What a part needs on this machine, where device and host may be one."""
        return part.budget if self.machine.capacity.device is not None else part.budget.on_one_memory()

    def peak(self, *, device: bool) -> int:
        """The most that any part needs of one memory, of the device's without what torch does not count."""
        if device:
            return max(self.budget(part).peak("device", reserve=False) for part in self.parts)
        return max(self.budget(part).peak("host", reserve=False) for part in self.parts)

    def seconds(self, part: Part) -> float | None:
        """Of one optimizer step; None where the device's speed is not known or the part makes no steps."""
        rates = self.machine.rates
        return None if rates is None or part.cost is None else part.cost.seconds(rates)


def plan_memory(config: RunConfig, sizes: RunSizes, machine: Machine) -> MemoryPlan:
    """Decide where everything goes, and add up what that needs.

    Args:
        config: the run.
        sizes: of the model, the batches and the renders.
        machine: that it is to run on.
    """
    placement = placement_of(config, sizes.shape.depth)
    if config.memory.memory_plan == "auto":
        placement = (
            _fitting(config, sizes, machine, placement, also_wanted=True)
            or _fitting(config, sizes, machine, placement)
            or _least(placement, sizes.shape.depth)
        )
        config = applied(config, placement)
    parts = tuple(_parts(config.model, sizes, machine, placement))
    return MemoryPlan(config, machine, placement, parts, sizes.released)


def resolve(config: RunConfig, sizes: RunSizes, machine: Machine) -> RunConfig:
    """Put what `memory_plan: auto` chooses into the keys that the builders read.

    Args:
        config: the run; with `memory_plan: manual` it comes back as it is.
        sizes: as for `plan_memory`.
        machine: as for `plan_memory`.

    Raises:
        DeviceError: it does not fit; says what to change.
    """
    plan = plan_memory(config, sizes, machine)
    require_fit(plan, sizes)
    return plan.config


def applied(config: RunConfig, placement: Placement) -> RunConfig:
    """A config whose keys say what a plan chose; group offload streams all blocks already."""
    streamed = 0 if config.memory.enable_group_offload else placement.streamed_blocks
    memory = config.memory.model_copy(
        update={
            "musubi_blocks_to_swap": streamed,
            "feed_forward_chunk_size": placement.ffn_chunk_tokens,
        }
    )
    training = config.training.model_copy(
        update={"gradient_checkpointing_offload": placement.boundaries_on_host}
    )
    return config.model_copy(update={"memory": memory, "training": training})


def require_fit(plan: MemoryPlan, sizes: RunSizes) -> None:
    """Refuse a run that the machine has no room for, before anything is loaded.

    Args:
        plan: of the run.
        sizes: that it was made from.

    Raises:
        DeviceError: says which memory, how much is missing, and the cheapest change that helps.
    """
    for shortage in plan.shortages:
        raise DeviceError(f"{_sentence(shortage)}; {remedy(plan, sizes, shortage)}")


def remedy(plan: MemoryPlan, sizes: RunSizes, shortage: Shortage) -> str:
    """The cheapest change that makes a run fit.

    Args:
        plan: that does not fit.
        sizes: that it was made from.
        shortage: of it.
    """
    config = plan.config
    # A base that is shared out over processes keeps its form and its place.
    others = () if plan.placement.sharing > 1 else SMALLER_PRECISIONS
    for precision in (config.model.base_model_precision, *others):
        model = config.model.model_copy(update={"base_model_precision": precision})
        trial = config.model_copy(update={"model": model})
        found = _fitting(trial, sizes, plan.machine, plan.placement)
        if found is None:
            continue
        changes = _changes(plan.placement, found)
        if precision != config.model.base_model_precision:
            changes.append(f"base_model_precision to {precision}")
        elif config.memory.memory_plan == "manual":
            changes[-1] += ", or memory_plan to auto"
        return f"set {', '.join(changes)}"
    least = _parts(config.model, sizes, plan.machine, _least(plan.placement, sizes.shape.depth))
    left = [one for one in _shortages(least, plan.machine) if one.where == shortage.where]
    return _smaller_work(min([shortage, *left], key=lambda one: one.needed))


def _sentence(shortage: Shortage) -> str:
    """Which memory, how much is needed for what, and the rule."""
    return (
        f"{shortage.where} memory ({gib(shortage.needed)} predicted for {shortage.moment.name}) must be at "
        f"most {1 - SPARE:.0%} of the {gib(shortage.available)} that are free"
    )


def _shortages(parts: Iterable[Part], machine: Machine, *, also_wanted: bool = False) -> tuple[Shortage, ...]:
    decisive = (part for part in parts if part.certain or (also_wanted and part.wanted))
    return shortages([part.budget for part in decisive], machine.capacity)


def _smaller_work(shortage: Shortage) -> str:
    """What to lower when no placement of weights and activations helps."""
    name = shortage.moment.name
    if "captions" in name or "text encoder" in name:
        return "set text_encoder_1_precision to int8-quanto, or fill the caches on another machine"
    if name.startswith("refining"):
        return "set validation_refinement_lora to null, or the videos may stay as they were rendered"
    if name.startswith("attaching"):
        return "set validation_lora and validation_refinement_lora to null"
    if name.startswith(("denoising", "filling the cache", "decoding")):
        return "lower validation_resolution or validation_num_video_frames"
    if name.startswith("encoding clips"):
        return "lower the resolution of the datasets"
    return (
        f"{gib(shortage.needed)} are needed wherever else weights and activations are put: lower "
        "train_batch_size, then num_frames and resolution of the datasets"
    )


def _changes(now: Placement, found: Placement) -> list[str]:
    """The keys that make one placement another."""
    changes = []
    if found.streamed_blocks != now.streamed_blocks:
        changes.append(f"musubi_blocks_to_swap to {found.streamed_blocks}")
    if found.boundaries_on_host != now.boundaries_on_host:
        changes.append("gradient_checkpointing_offload to true")
    if found.ffn_chunk_tokens != now.ffn_chunk_tokens:
        changes.append(f"feed_forward_chunk_size to {found.ffn_chunk_tokens}")
    return changes


def _fitting(
    config: RunConfig, sizes: RunSizes, machine: Machine, least: Placement, *, also_wanted: bool = False
) -> Placement | None:
    """The placement that fits with the fewest streamed blocks, then boundaries, then chunks; or none."""
    # The largest bucket decides, and there may be dozens.
    decisive = replace(sizes, trained=tuple(_largest(sizes.trained)))

    def lacking(placement: Placement) -> set[Where]:
        parts = _parts(config.model, decisive, machine, placement)
        return {shortage.where for shortage in _shortages(parts, machine, also_wanted=also_wanted)}

    counts = range(least.streamed_blocks, _most_streamed(least, sizes.shape.depth) + 1)
    for level in _levels(least):
        # The device needs the less, and the host the more, the more blocks are streamed.
        place = bisect_left(
            counts, True, key=lambda count: "device" not in lacking(replace(level, streamed_blocks=count))
        )
        if place < len(counts):
            found = replace(level, streamed_blocks=counts[place])
            if not lacking(found):
                return found
    return None


def _levels(least: Placement) -> Iterator[Placement]:
    """Placements from cheap to dear, whatever is streamed: boundaries leave, then chunks shrink."""
    yield least
    moved = replace(least, boundaries_on_host=True)
    if moved != least:
        yield moved
    for chunk in CHUNKS:
        if least.ffn_chunk_tokens is None or chunk < least.ffn_chunk_tokens:
            yield replace(moved, ffn_chunk_tokens=chunk)


def _least(placement: Placement, depth: int) -> Placement:
    """The placement that needs least of the device."""
    streamed = _most_streamed(placement, depth)
    return replace(placement, streamed_blocks=streamed, boundaries_on_host=True, ffn_chunk_tokens=CHUNKS[-1])


def _most_streamed(placement: Placement, depth: int) -> int:
    """Blocks that may be streamed: no more than are, of a base that is shared out over processes."""
    return placement.streamed_blocks if placement.sharing > 1 else depth


def _parts(model: ModelSection, sizes: RunSizes, machine: Machine, placement: Placement) -> Iterator[Part]:
    """What a run does, each with what it needs; the largest of a kind stands for all where only it counts."""

    def training(bucket: Bucket, *, clips: int) -> Training:
        return Training(
            sizes.shape,
            model.base_model_precision,
            placement,
            sizes.adapter,
            batch_of(bucket, sizes.shape, clips=clips),
            machine.imports_bytes,
            writes_scores=model.attention_implementation == "math",
            attended_share=_attended_share(model, bucket, sizes, machine),
            resting_bytes=sum(lora.num_bytes for lora in (sizes.render_lora, refinement_lora)),
        )

    refinement_lora = sizes.refinement_lora or NO_LORA
    for bucket in sizes.trained:
        step = training(bucket, clips=sizes.batch_size)
        cost = step_cost(step, micro_batches=sizes.micro_batches)
        yield Part(f"training {bucket.name}", training_budget(step), cost)
    trains = [training(bucket, clips=sizes.batch_size) for bucket in _largest(sizes.trained)]
    for bucket in _largest(sizes.held_out):
        for largest in trains:
            yield Part(f"evaluation {bucket.name}", evaluation_budget(largest, batch_of(bucket, sizes.shape)))

    def beside(bucket: Bucket) -> Training:
        own = training(bucket, clips=1)
        return replace(own, batch=trains[0].batch) if trains else own

    for size in largest_renders(sizes.rendered):
        render = render_of(size, sizes.shape, sizes.render_lora)
        budget = render_budget(beside(size.bucket), render, sizes.vae, in_training=bool(trains))
        yield Part(f"render {render.picture.name}", budget)
        if sizes.refinement_lora is not None:
            refined = refinement_of(size, sizes.shape, refinement_lora)
            large = refined_bucket(size)
            budget = refinement_budget(beside(large), refined, sizes.vae, in_training=bool(trains))
            yield Part(f"refinement {large.name}", budget, certain=False, wanted=not trains)
    for bucket in _largest(sizes.encoded):
        budget = encode_budget(sizes.vae, picture_of(bucket), imports_bytes=machine.imports_bytes)
        yield Part(f"encoding clips {bucket.name}", budget, certain=False)
    captions = text_budget(sizes.text_encoder, imports_bytes=machine.imports_bytes)
    yield Part("encoding captions", captions, certain=False)


def _attended_share(model: ModelSection, bucket: Bucket, sizes: RunSizes, machine: Machine) -> float:
    """Which part of its pairs of tokens a clip's attention computes: a sixteenth where it is block-sparse."""
    chosen = model.attention_implementation
    large = bucket.num_frames > 1 and bucket.width * bucket.height >= MIN_PIXELS
    on_card = machine.capacity.device is not None
    if chosen == "block_sparse" or (chosen == "auto" and on_card and large):
        return sizes.sparse_share
    return 1.0


def _largest(buckets: Iterable[Bucket]) -> Sequence[Bucket]:
    """The one of most tokens, if there is any."""
    chosen = max(buckets, key=lambda bucket: bucket.num_tokens, default=None)
    return () if chosen is None else (chosen,)
