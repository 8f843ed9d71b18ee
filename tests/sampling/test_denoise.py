"""The loop's promises that hold for any model; the numbers are golden cases."""

from __future__ import annotations

import pytest
import torch

from longcat_tune.flow.schedule import inference_sigmas
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.sampling.denoise import Guidance, TextCondition, denoise


def small_model() -> LongCatVideoTransformer:
    torch.manual_seed(0)
    return LongCatVideoTransformer(4, 4, 32, 2, 2, 8, 4, 16, 16).eval()


def text(seed: int) -> TextCondition:
    generator = torch.Generator().manual_seed(seed)
    return TextCondition(torch.randn(1, 6, 8, generator=generator), torch.tensor([[1, 1, 1, 0, 0, 0]]))


def start() -> torch.Tensor:
    return torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(3))


def test_the_cache_changes_nothing_without_guidance() -> None:
    model, sigmas = small_model(), inference_sigmas(3)
    plain = denoise(model, start(), sigmas, text(1), num_cond_latents=2)
    cached = denoise(model, start(), sigmas, text(1), num_cond_latents=2, use_kv_cache=True)
    torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-5)


def test_the_loop_leaves_its_input_and_the_global_generator_alone() -> None:
    model, latents = small_model(), start()
    before = torch.get_rng_state()
    denoise(model, latents, inference_sigmas(2), text(1), guidance=Guidance(4.0, text(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(latents, start())


def test_a_cache_without_condition_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="use_kv_cache"):
        denoise(small_model(), start(), inference_sigmas(2), text(1), use_kv_cache=True)


def test_guidance_with_a_batch_of_two_equals_two_runs_of_one() -> None:
    model, sigmas = small_model(), inference_sigmas(3)
    latents = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    prompts, unwanted = [text(1), text(2)], [text(3), text(4)]

    def both(conditions: list[TextCondition]) -> TextCondition:
        return TextCondition(
            torch.cat([one.text_BLD for one in conditions]), torch.cat([one.mask_BL for one in conditions])
        )

    def run(
        noise: torch.Tensor, prompt: TextCondition, negative: TextCondition, **how: object
    ) -> torch.Tensor:
        return denoise(model, noise, sigmas, prompt, guidance=Guidance(4.0, negative), **how)

    for how in ({}, {"num_cond_latents": 2}, {"num_cond_latents": 2, "use_kv_cache": True}):
        together = run(latents, both(prompts), both(unwanted), **how)
        alone = [run(latents[i : i + 1], prompts[i], unwanted[i], **how) for i in range(2)]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=0.1)
