"""Schedules, the sampler's step and guidance against the official implementation's numbers."""

from __future__ import annotations

import torch

from longcat_tune.flow.guidance import best_scale, guide
from longcat_tune.flow.noising import euler_step, mix
from longcat_tune.flow.schedule import LOWEST_RAW_SIGMA, inference_sigmas, shift_sigma, timesteps
from tests.golden.cases import Case, parametrize

SIGMA_TOLERANCE = 1e-6  # the manifest's note: its own atol is for timesteps


@parametrize("scheduler_tables")
def test_schedules_equal_official(case: Case) -> None:
    tensors = case.tensors()
    for steps in case.call["steps"]:
        for name, sigmas in {
            f"pipe_shift12_{steps}": inference_sigmas(steps),
            f"pipe_shift1_{steps}": inference_sigmas(steps, shift=1.0),
            f"distill_{steps}": inference_sigmas(steps, distilled=True),
            f"enhance_hf_{steps}": inference_sigmas(steps, enhance_high_frequency=True),
        }.items():
            case.check(timesteps(sigmas), tensors[f"out.{name}.timesteps"], name)
            assert torch.allclose(sigmas, tensors[f"out.{name}.sigmas"], rtol=0, atol=SIGMA_TOLERANCE), name


@parametrize("scheduler_tables")
def test_the_library_s_own_schedule_would_shift_twice(case: Case) -> None:
    tensors = case.tensors()
    for shift in (1.0, 12.0):
        once = shift_sigma(torch.linspace(1, LOWEST_RAW_SIGMA, 1000), shift)
        case.check(once, tensors[f"out.init_shift{shift:.0f}.sigmas"])
        for steps in case.call["steps"]:
            twice = shift_sigma(torch.linspace(once[0], once[-1], steps), shift)
            case.check(twice, tensors[f"out.plain_shift{shift:.0f}_{steps}.sigmas"][:-1])


@parametrize("scheduler_step")
def test_steps_equal_official(case: Case) -> None:
    tensors = case.tensors()
    sigmas = inference_sigmas(case.call["steps"], case.call["shift"])
    latents = tensors["in.sample"]
    for number, velocity in enumerate(tensors["in.model_outputs"]):
        latents = euler_step(latents, -velocity, sigmas[number], sigmas[number + 1])
        case.check(latents, tensors["out.samples"][number])
    first = euler_step(tensors["in.sample"].bfloat16(), -tensors["in.model_outputs"][0], sigmas[0], sigmas[1])
    case.check(first, tensors["out.step0_bf16_sample_fp32_output"])
    noised = mix(
        tensors["in.scale_noise.x0"],
        tensors["in.scale_noise.noise"],
        tensors["in.scale_noise.timestep"] / 1000,
    )
    case.check(noised, tensors["out.scale_noise"])


@parametrize("cfg")
def test_guidance_equals_official(case: Case) -> None:
    tensors = case.tensors()
    cond, uncond = tensors["in.cond"], tensors["in.uncond"]
    case.check(best_scale(cond, uncond).flatten(1), tensors["out.st_star"])
    case.check(guide(cond, uncond, case.call["guidance_scale"]), tensors["out.guided"])
