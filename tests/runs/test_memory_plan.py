"""`memory_plan: auto` takes the cheapest placement that fits; what does not fit is refused with a remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from longcat_tune.config.load import load_run_config
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import ConfigError, DeviceError
from longcat_tune.memory.budget import GIB, Capacity, usable
from longcat_tune.memory.budget_parts import RELEASED_TEXT_ENCODER, RELEASED_VAE_PARAMETERS, VaeSize
from longcat_tune.memory.budget_shape import ModelShape
from longcat_tune.memory.budget_time import CARDS
from longcat_tune.memory.budget_training import CONTEXT, AdapterSize
from longcat_tune.runs.machine import Machine, OtherMachine, parse_size, planned_machine
from longcat_tune.runs.memory_plan import MemoryPlan, plan_memory, require_fit, resolve
from longcat_tune.runs.memory_renders import RenderSize
from longcat_tune.runs.memory_sizes import RunSizes, placement_of
from longcat_tune.types import Bucket

BUCKET = Bucket(832, 480, 93)
ADAPTER = AdapterSize(20_447_232, in_attention=True, in_ffn=False, state_bytes=8, averaged=False)
SIZES = RunSizes(
    shape=ModelShape(),
    adapter=ADAPTER,
    batch_size=1,
    micro_batches=1,
    trained=(BUCKET, Bucket(320, 320, 1)),
    held_out=(),
    rendered=(RenderSize(BUCKET, BUCKET.num_frames),),
    encoded=(BUCKET,),
    vae=VaeSize(RELEASED_VAE_PARAMETERS, base_width=96, element_bytes=2),
    text_encoder=RELEASED_TEXT_ENCODER,
    released=True,
)


def config(**keys: Any) -> RunConfig:
    read = load_run_config(None, {})
    sections = {
        name: getattr(read, name).model_copy(
            update={
                key: value for key, value in keys.items() if key in type(getattr(read, name)).model_fields
            }
        )
        for name in ("model", "memory", "training")
    }
    return read.model_copy(update=sections)


def machine(device: float, host: float = 128) -> Machine:
    return Machine("card", Capacity(int(device * GIB), int(host * GIB)), CARDS["H100"], 3 * GIB)


def auto(device: float, host: float = 128, **keys: Any) -> MemoryPlan:
    return plan_memory(config(memory_plan="auto", **keys), SIZES, machine(device, host))


def test_where_everything_fits_everything_is_resident() -> None:
    plan = auto(80)
    assert (plan.placement.streamed_blocks, plan.placement.boundaries_on_host) == (0, False)
    assert plan.shortages == ()
    require_fit(plan, SIZES)


def test_the_fewest_blocks_that_fit_are_streamed() -> None:
    plan = auto(40)
    streamed = plan.placement.streamed_blocks
    assert 0 < streamed < 48
    assert not plan.placement.boundaries_on_host
    assert plan.shortages == ()
    one_less = config(musubi_blocks_to_swap=streamed - 1)
    assert plan_memory(one_less, SIZES, machine(40)).shortages != ()


def test_boundaries_leave_the_device_only_when_streaming_all_blocks_does_not_do() -> None:
    plan = auto(24)
    assert plan.placement.boundaries_on_host
    assert plan.placement.ffn_chunk_tokens is None
    assert plan.shortages == ()
    all_streamed = config(musubi_blocks_to_swap=48)
    assert plan_memory(all_streamed, SIZES, machine(24)).shortages != ()


def test_the_feed_forward_is_cut_last() -> None:
    plan = auto(11)
    assert plan.placement.ffn_chunk_tokens == 8192
    assert plan.placement.boundaries_on_host
    assert plan.shortages == ()


def test_the_plan_leaves_a_twentieth_free() -> None:
    plan = auto(40)
    peak = max(part.budget.peak("device") for part in plan.parts if part.certain)
    assert peak <= usable(40 * GIB) < 40 * GIB


def test_a_choice_replaces_the_keys_that_builders_read() -> None:
    plan = auto(11)
    memory, training = plan.config.memory, plan.config.training
    assert memory.musubi_blocks_to_swap == plan.placement.streamed_blocks
    assert memory.feed_forward_chunk_size == 8192
    assert training.gradient_checkpointing_offload
    # What was chosen fits without being chosen again.
    manual = plan.config.model_copy(update={"memory": memory.model_copy(update={"memory_plan": "manual"})})
    assert resolve(manual, SIZES, machine(11)) == manual


def test_group_offload_stays_what_streams_all_blocks() -> None:
    plan = auto(80, enable_group_offload=True)
    assert plan.placement.streamed_blocks == 48
    assert plan.config.memory.musubi_blocks_to_swap == 0
    assert plan.config.memory.enable_group_offload


def test_what_does_not_fit_is_refused_with_keys_that_make_it_fit() -> None:
    asked = config()
    with pytest.raises(DeviceError) as refused:
        resolve(asked, SIZES, machine(40))
    message = str(refused.value)
    assert message.startswith("device memory (")
    assert "GiB predicted for backward of a block, 832x480@93) must be at most 95% of the 40.0 GiB" in message
    streamed = auto(40).placement.streamed_blocks
    assert f"; set musubi_blocks_to_swap to {streamed}, or memory_plan to auto" in message
    resolve(config(musubi_blocks_to_swap=streamed), SIZES, machine(40))


def test_a_host_too_small_for_the_blocks_in_bf16_is_told_of_eight_bits() -> None:
    with pytest.raises(DeviceError, match="base_model_precision to int8-quanto"):
        resolve(config(), SIZES, machine(14, host=34))


def shared_out(monkeypatch: pytest.MonkeyPatch, processes: int = 2) -> None:
    """As accelerate launch --use_fsdp starts it."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", str(processes))


@pytest.mark.parametrize("device", [40, 26, 8])
def test_a_base_that_is_shared_out_is_not_streamed_by_a_plan(
    monkeypatch: pytest.MonkeyPatch, device: int
) -> None:
    assert auto(device).placement.streamed_blocks > 0
    shared_out(monkeypatch)
    plan = auto(device)
    assert plan.placement.sharing == 2
    assert plan.placement.streamed_blocks == plan.config.memory.musubi_blocks_to_swap == 0


def test_what_a_plan_may_do_with_a_shared_out_base_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    shared_out(monkeypatch, 8)
    plan = auto(24)
    assert (plan.shortages, plan.placement.boundaries_on_host) == ((), True)


@pytest.mark.parametrize(
    ("device", "remedy"), [(26, "set gradient_checkpointing_offload to true"), (8, "lower train_batch_size")]
)
def test_the_remedy_for_a_shared_out_base_leaves_its_weights_alone(
    monkeypatch: pytest.MonkeyPatch, device: int, remedy: str
) -> None:
    shared_out(monkeypatch)
    with pytest.raises(DeviceError, match=remedy) as refused:
        resolve(config(), SIZES, machine(device))
    assert "musubi_blocks_to_swap" not in str(refused.value)
    assert "base_model_precision" not in str(refused.value)


def test_what_nothing_makes_fit_says_what_to_lower() -> None:
    for asked in (config(memory_plan="auto"), config()):
        with pytest.raises(
            DeviceError, match=r"; [67]\.\d GiB are needed wherever .* lower train_batch_size"
        ):
            resolve(asked, SIZES, machine(3))
    large = replace(
        SIZES, trained=(Bucket(256, 256, 1),), rendered=(RenderSize(Bucket(1920, 1088, 189), 189),)
    )
    with pytest.raises(DeviceError, match="lower validation_resolution or validation_num_video_frames"):
        resolve(config(), large, machine(12))


def test_encoding_is_doubted_and_never_refused() -> None:
    plan = plan_memory(config(memory_plan="auto"), SIZES, machine(10.5))
    require_fit(plan, SIZES)
    [doubt] = plan.doubts
    assert "encoding captions" in doubt
    assert doubt.endswith(
        "set text_encoder_1_precision to int8-quanto, or fill the caches on another machine"
    )


def test_one_memory_holds_what_device_and_host_would() -> None:
    shared = Machine("cpu", Capacity(None, 64 * GIB), None, GIB // 2)
    plan = plan_memory(config(), SIZES, shared)
    training = plan.budget(plan.parts[0])
    assert training.peak("device") == 0
    assert 45 * GIB < training.peak("host") < 52 * GIB
    assert plan.seconds(plan.parts[0]) is None


def test_streaming_moves_every_block_twice_less_what_stays_and_takes_no_longer_than_it_computes() -> None:
    resident, streamed = auto(80), plan_memory(config(musubi_blocks_to_swap=48), SIZES, machine(80))
    cost = streamed.parts[0].cost
    assert cost is not None
    assert cost.moved == 2 * 46 * ModelShape().block_bytes("bf16")
    assert cost.operations == pytest.approx(7.6e15, rel=0.02)
    assert streamed.seconds(streamed.parts[0]) == resident.seconds(resident.parts[0])


def test_every_key_that_places_something_is_read() -> None:
    keys = {
        "enable_group_offload": True,
        "group_offload_blocks_per_group": 3,
        "group_offload_use_stream": False,
        "gradient_checkpointing_interval": 2,
        "gradient_checkpointing_offload": True,
        "feed_forward_chunk_size": 2048,
    }
    placement = placement_of(config(**keys), 48)
    assert (placement.streamed_blocks, placement.blocks_per_group, placement.slots) == (48, 3, 1)
    assert (placement.recompute_every, placement.boundaries_on_host) == (2, True)
    assert placement.ffn_chunk_tokens == 2048
    assert placement_of(config(musubi_blocks_to_swap=48), 4).streamed_blocks == 4
    assert placement_of(config(gradient_checkpointing=False), 4).recompute_every is None


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GiB", 24 * GIB), ("24G", 24 * 10**9), ("1.5 tb", 15 * 10**11), ("512MiB", GIB // 2)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size("--device-memory", text) == size


@pytest.mark.parametrize("text", ["", "much", "24 apples", "1.2.3G", "."])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--host-memory .* must be a size in bytes; write it like 24GiB"):
        parse_size("--host-memory", text)


def test_another_machine_takes_the_place_of_this_one() -> None:
    here = Machine("cpu", Capacity(None, GIB), None, GIB)
    there = planned_machine(here, OtherMachine("24GiB", "64GiB", "RTX 4090"))
    assert there.capacity == Capacity(24 * GIB - CONTEXT, 64 * GIB)
    assert there.rates == CARDS["RTX 4090"]
    assert planned_machine(here, OtherMachine(host_memory="2GiB")).capacity == Capacity(None, 2 * GIB)
    with pytest.raises(ConfigError, match=r"--device-name .abacus. must be one of H200, H100"):
        planned_machine(here, OtherMachine(device_name="abacus"))
