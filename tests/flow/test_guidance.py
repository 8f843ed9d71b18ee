"""Guidance per sample, which the official code has for a batch of one only."""

from __future__ import annotations

import torch

from longcat_tune.flow.guidance import guide


def test_a_batch_is_guided_sample_by_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 3, 4, 2, 5, 5, generator=generator)
    together = guide(cond, uncond, 4.0)
    for sample in range(3):
        alone = guide(cond[sample : sample + 1], uncond[sample : sample + 1], 4.0)
        torch.testing.assert_close(together[sample : sample + 1], alone)


def test_guidance_of_one_is_the_conditional_prediction() -> None:
    cond, uncond = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)
