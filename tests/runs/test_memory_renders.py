"""Requests become the kinds of renders that a memory plan counts, and those the parts of a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from longcat_tune.memory.budget_renders import LentLora
from longcat_tune.memory.budget_shape import ModelShape
from longcat_tune.runs.memory_plan import plan_memory
from longcat_tune.runs.memory_renders import RenderSize, largest_renders, refined_bucket, render_of
from longcat_tune.sampling.requests import RenderRequest
from longcat_tune.types import Bucket
from tests.runs.test_memory_plan import BUCKET, SIZES, config, machine

LORA = LentLora(650_000_000, in_ffn=True)
TEXT = RenderSize(BUCKET, 93)
CONTINUED = RenderSize(BUCKET, 93, cond_latents=4)


def size_of(**own: Any) -> RenderSize:
    request = RenderRequest("dog", "A dog.", "", BUCKET, num_steps=50, guidance=4, seed=1)
    return RenderSize.of(replace(request, **own))


def test_a_request_has_a_cache_where_several_frames_are_given() -> None:
    image = size_of(start_image=Path("dog.png"))
    assert size_of() == TEXT
    assert (image.cond_latents, image.cached_latents, image.from_image) == (1, 0, True)
    assert size_of(start_image=Path("dog.mp4"), num_start_frames=13) == CONTINUED
    assert size_of(num_segments=3) == RenderSize(BUCKET, 93 + 2 * 80, cond_latents=4)
    assert size_of(num_segments=3, start_image=Path("dog.png")).from_image


def test_given_frames_leave_the_call_only_for_a_cache() -> None:
    per_latent = BUCKET.num_tokens // 24
    continued = render_of(CONTINUED, ModelShape(), LORA)
    image = render_of(RenderSize(BUCKET, 93, 1, from_image=True), ModelShape(), LORA)
    assert (continued.batch.tokens, continued.batch.cached_tokens) == (20 * per_latent, 4 * per_latent)
    assert (continued.batch.given_tokens, continued.picture.name) == (0, "832x480@93 after 13 frames")
    assert (image.batch.tokens, image.batch.given_tokens) == (24 * per_latent, per_latent)


def test_the_largest_render_with_a_cache_and_the_largest_without_count() -> None:
    small = Bucket(320, 320, 93)
    rendered = [RenderSize(small, 93), TEXT, RenderSize(small, 93, cond_latents=4), CONTINUED]
    assert set(largest_renders(rendered)) == {TEXT, CONTINUED}
    longer = RenderSize(BUCKET, 253, cond_latents=4)
    assert largest_renders([longer, CONTINUED]) == (longer,)


def test_a_render_is_refined_with_twice_its_frames_in_whole_chunks() -> None:
    # 186 frames are 47 latent ones; with a given first frame 4 of condition and 47, as 4 and 48.
    assert refined_bucket(TEXT) == Bucket(1280, 704, 189)
    assert refined_bucket(RenderSize(BUCKET, 93, 1, from_image=True)) == Bucket(1280, 704, 205)
    assert refined_bucket(RenderSize(BUCKET, 173)).latent_shape[0] == 88


def test_a_plan_counts_the_cache_and_the_loras() -> None:
    def peak(*rendered: RenderSize, **loras: LentLora) -> dict[str, int]:
        plan = plan_memory(config(), replace(SIZES, rendered=rendered, **loras), machine(141))
        return {part.name.split()[0]: part.budget.peak("device", reserve=False) for part in plan.parts}

    # 48 blocks, keys and values, 6,240 tokens, less what so many tokens less take at work.
    cache = 48 * 2 * 2 * 6240 * 4096
    more = peak(CONTINUED)["render"] - peak(TEXT)["render"]
    assert 0.75 * cache < more < cache
    assert peak(TEXT, render_lora=LORA)["render"] >= peak(TEXT)["render"] + LORA.num_bytes
    assert peak(TEXT, refinement_lora=LORA)["refinement"] > peak(TEXT)["render"]


def test_loras_of_renders_rest_beside_training() -> None:
    alone, beside = (
        plan_memory(config(), replace(SIZES, render_lora=one), machine(141)).parts[0].budget
        for one in (LentLora(), LORA)
    )

    def at_rest(budget: Any) -> int:
        [backward] = [one for one in budget.moments if one.name.startswith("backward")]
        return backward.num_bytes("host")

    assert at_rest(beside) - at_rest(alone) == LORA.num_bytes


def test_a_refinement_is_never_refused_and_decides_only_where_nothing_is_trained() -> None:
    images = replace(SIZES, trained=(Bucket(320, 320, 1),))
    refined = replace(images, refinement_lora=LORA)
    auto = config(memory_plan="auto")
    in_training = plan_memory(auto, refined, machine(40))
    assert in_training.placement == plan_memory(auto, images, machine(40)).placement
    [doubt] = [one for one in in_training.doubts if "refining" in one]
    assert doubt.endswith("validation_refinement_lora to null, or the videos may stay as they were rendered")

    renders = replace(refined, trained=())
    plan = plan_memory(auto, renders, machine(40))
    assert plan.placement != plan_memory(auto, replace(SIZES, trained=()), machine(40)).placement
    assert not [one for one in plan.doubts if "refining" in one]
    assert plan_memory(config(), renders, machine(40)).shortages == ()
