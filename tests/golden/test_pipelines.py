"""Whole sampling loops against the official pipelines' latents, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_tune.flow.schedule import inference_sigmas, refinement_sigmas, timesteps
from longcat_tune.sampling.denoise import Guidance, TextCondition, denoise
from longcat_tune.sampling.refine import Layout, enlarge
from tests.golden.cases import Case, parametrize, text_of


def run(case: Case, tensors: dict[str, Tensor], start: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    call = case.call
    sigmas = inference_sigmas(
        call["num_inference_steps"],
        call["shift"],
        call["use_distill"],
        enhance_high_frequency=call.get("enhance_hf", False),
    )
    prompt = TextCondition(text_of(tensors, "in.prompt_embeds"), tensors["in.prompt_attention_mask"])
    guidance = None
    if call["guidance_scale"] > 1:
        negative = TextCondition(
            text_of(tensors, "in.negative_prompt_embeds"), tensors["in.negative_prompt_attention_mask"]
        )
        guidance = Guidance(call["guidance_scale"], negative)
    steps: list[Tensor] = []
    latents = denoise(
        case.model(),
        start,
        sigmas,
        prompt,
        guidance=guidance,
        num_cond_latents=call.get("num_cond_latents", 0),
        use_kv_cache=call.get("use_kv_cache", False),
        on_step=lambda _, latents, __: steps.append(latents),
    )
    return latents, steps, timesteps(sigmas)


@parametrize("pipeline_t2v")
def test_text_to_video_equals_official(case: Case) -> None:
    tensors = case.tensors()
    latents, steps, times = run(case, tensors, tensors["in.latents"])
    case.check(times, tensors["out.timesteps"])
    case.check(torch.stack(steps), tensors["out.step_latents"])
    case.check(latents, tensors["out.latents"])


@parametrize("pipeline_i2v", "pipeline_vc")
def test_image_to_video_and_continuation_equal_official(case: Case) -> None:
    tensors, k = case.tensors(), case.call["num_cond_latents"]
    start = tensors["out.initial_latents"]
    kept = start.clone()
    latents, steps, times = run(case, tensors, start)
    case.check(times, tensors["out.timesteps"])
    case.check(torch.stack(steps)[:, :, :, k:], tensors["out.step_noise_latents"])
    case.check(latents, tensors["out.latents"])
    assert torch.equal(latents[:, :, :k], kept[:, :, :k])
    assert torch.equal(start, kept)


@parametrize("pipeline_refine")
def test_refinement_equals_official(case: Case) -> None:
    tensors, call = case.tensors(), case.call
    k, sigmas = call["num_cond_latents"], refinement_sigmas(call["num_inference_steps"], call["t_thresh"])
    prompt = TextCondition(text_of(tensors, "in.prompt_embeds"), tensors["in.prompt_attention_mask"])
    steps: list[Tensor] = []
    latents = denoise(
        case.model(),
        tensors["out.initial_latents"],
        sigmas,
        prompt,
        num_cond_latents=k,
        on_step=lambda _, latents, __: steps.append(latents),
    )
    case.check(timesteps(sigmas), tensors["out.timesteps"])
    case.check(torch.stack(steps)[:, :, :, k:], tensors["out.step_noise_latents"])
    case.check(latents, tensors["out.latents"])


@parametrize("pipeline_refine")
def test_the_enlarged_and_padded_video_equals_official(case: Case) -> None:
    tensors, call = case.tensors(), case.call
    times = 1 if call.get("spatial_refine_only") else 2
    pixels = enlarge(tensors["in.stage1_uint8"].numpy(), (128, 64), times=times)
    layout = Layout.of(pixels.shape[1], given_frames=call.get("num_cond_frames", 0))
    assert layout.num_cond_latents == call["num_cond_latents"]
    assert layout.num_noise_latents == tensors["out.initial_latents"].shape[2] - layout.num_cond_latents
    case.check(layout.pad(pixels)[None, :, :, ::4, ::4], tensors["out.video_up_sub4"])
