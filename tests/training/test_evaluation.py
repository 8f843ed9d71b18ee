"""The held-out loss is the one that anybody computes from the same tensors, and depends on nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from longcat_tune.errors import DataError, DeviceError
from longcat_tune.training.eval_result import ClipLosses, EvalResult, best_of, described
from longcat_tune.training.evaluation import (
    HeldOutClip,
    eval_noise,
    eval_sigmas,
    identity_of,
    measure,
)
from longcat_tune.types import BestEvaluation
from tests.training.toys import Filling, ToyModel, batch, held_out_clip, weights, with_latents

CPU = torch.device("cpu")
SIGMAS = eval_sigmas(12.0)
CLIPS = (held_out_clip(0), held_out_clip(1, cond=1), held_out_clip(2, cond=2))


def losses_of(model: torch.nn.Module, *clips: HeldOutClip) -> list[tuple[float, ...]]:
    return [row.losses for row in measure(model, clips, sigmas=SIGMAS, device=CPU)]


def result_of(*rows: ClipLosses, identity: str = "") -> EvalResult:
    return EvalResult.of(rows, sigmas=SIGMAS[: len(rows[0].losses)], identity=identity)


def scored(loss: float, identity: str = "") -> EvalResult:
    return result_of(ClipLosses("val/a.mp4", 0, (loss,)), identity=identity)


def test_losses_equal_a_reference_computed_from_the_tensors() -> None:
    model = ToyModel()
    got = losses_of(model, *CLIPS)
    for clip, losses in zip(CLIPS, got, strict=True):
        for level, loss in enumerate(losses):
            clean, k, sigma = clip.batch.latents_BCTHW.float(), clip.batch.num_cond_latents, SIGMAS[level]
            noise = eval_noise(clip.name, level, clean.shape)
            noised = (1 - sigma) * clean + sigma * noise
            noised[:, :, :k] = clean[:, :, :k]
            timestep = torch.full((1, 3), 1000 * sigma)
            timestep[:, :k] = 0
            with torch.no_grad():
                model.eval()
                answer = model(noised, timestep, clip.batch.text_BLD, clip.batch.mask_BL, num_cond_latents=k)
            error = (answer - (clean - noise))[:, :, k:]
            assert loss == pytest.approx(error.square().mean().item(), rel=1e-6)


def test_noise_levels_are_the_middles_of_equal_shares_of_the_density() -> None:
    u = torch.sigmoid(torch.randn(400_000, generator=Generator().manual_seed(0))).sort().values
    middles = u.view(8, -1)[:, 25_000]
    assert pytest.approx((12 * middles / (1 + 11 * middles)).tolist(), abs=2e-3) == SIGMAS
    assert eval_sigmas(1.0) == pytest.approx(middles.tolist(), abs=5e-3)
    assert list(SIGMAS) == sorted(SIGMAS)
    assert 0.7 < SIGMAS[0] < SIGMAS[-1] < 0.99


def test_the_same_weights_give_the_same_losses_whatever_was_drawn_before() -> None:
    model = ToyModel(dropout=0.5)
    first = losses_of(model, *CLIPS)
    torch.manual_seed(7)
    torch.randn(5)
    model.train()
    assert losses_of(model, *CLIPS) == first


def test_no_random_state_is_touched() -> None:
    model = ToyModel()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    losses_of(model, *CLIPS)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_kept_for_gradients_and_nothing_dropped() -> None:
    class Watching(ToyModel):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            assert not torch.is_grad_enabled()
            assert not self.training
            return super().forward(*args, **kwargs)

    assert len(losses_of(Watching(), *CLIPS)) == 3


def test_a_clip_s_losses_do_not_depend_on_the_others() -> None:
    model = ToyModel()
    together = losses_of(model, *CLIPS)
    assert [losses_of(model, clip)[0] for clip in reversed(CLIPS)] == together[::-1]


def test_given_frames_have_no_loss() -> None:
    class Wrong(ToyModel):
        """Answers nonsense for the frames that are given."""

        def forward(self, *args: Any, num_cond_latents: int = 0, **kwargs: Any) -> Tensor:
            answer = super().forward(*args, num_cond_latents=num_cond_latents, **kwargs)
            answer[:, :, :num_cond_latents] = 1e6
            return answer

    assert losses_of(Wrong(), *CLIPS) == losses_of(ToyModel(), *CLIPS)


def test_noise_differs_between_levels_and_names_and_never_changes() -> None:
    drawn = eval_noise("a.mp4", 0, (1, 4, 3, 2, 2))
    assert not torch.equal(drawn, eval_noise("a.mp4", 1, (1, 4, 3, 2, 2)))
    assert not torch.equal(drawn, eval_noise("b.mp4", 0, (1, 4, 3, 2, 2)))
    # As drawn by the first version: another one makes all losses ever measured incomparable.
    assert drawn.flatten()[:3].tolist() == pytest.approx([0.3958078, 0.9554079, -1.2218537], abs=1e-6)


def test_pooled_and_partial_means_agree() -> None:
    rows = measure(ToyModel(), CLIPS, sigmas=SIGMAS, device=CPU)
    result = EvalResult.of(rows, sigmas=SIGMAS, identity="x")
    assert result.loss == pytest.approx(math.fsum(result.losses) / len(SIGMAS), rel=1e-12)
    assert result.loss == pytest.approx(math.fsum(result.by_task.values()) / 3, rel=1e-12)
    assert list(result.by_task) == ["t2v", "i2v", "continuation"]
    assert result.losses_by_task["i2v"] == pytest.approx(rows[1].losses, rel=1e-12)
    assert result.by_task["i2v"] == pytest.approx(sum(rows[1].losses) / len(SIGMAS), rel=1e-12)
    assert result.clips == 3
    assert EvalResult.of(rows[::-1], sigmas=SIGMAS, identity="x") == result


def test_a_clip_of_two_tasks_counts_once_and_weighs_twice() -> None:
    rows = (
        ClipLosses("val/a.mp4", 0, (1.0, 3.0)),
        ClipLosses("val/a.mp4", 1, (2.0, 4.0)),
        ClipLosses("val/b.mp4", 0, (3.0, 5.0)),
    )
    result = result_of(*rows)
    assert (result.clips, result.loss, result.losses) == (2, 3.0, (2.0, 4.0))
    assert result.as_json()["by_task"] == {"t2v": 3.0, "i2v": 3.0}


def test_a_loss_that_is_no_number_names_the_clip_and_the_noise_level() -> None:
    bad = HeldOutClip("b.mp4", with_latents(batch(1), float("inf")))
    with pytest.raises(DataError, match=r"is nan for clips/1-0.mp4 at noise level 0\.\d+, which must be"):
        losses_of(ToyModel(), CLIPS[0], bad)


def test_running_out_of_memory_gives_advice_and_names_the_clip() -> None:
    with pytest.raises(DeviceError, match=r"out of memory in the evaluation of clips/0-0.mp4 \(CUDA"):
        losses_of(Filling(3), *CLIPS)


def test_weights_stay_as_they_are() -> None:
    model = ToyModel()
    before = weights(model).clone()
    losses_of(model, *CLIPS)
    assert torch.equal(weights(model), before)


def test_the_identity_tells_clips_and_noise_levels_apart_but_not_their_order() -> None:
    clips = [("latents 1", "text 1", "a.mp4", "0"), ("latents 2", "text 1", "b.mp4", "0")]
    identity = identity_of(SIGMAS, clips)
    assert identity == identity_of(SIGMAS, clips[::-1])
    others = [
        identity_of(eval_sigmas(3.0), clips),
        identity_of(SIGMAS, clips[:1]),
        identity_of(SIGMAS, [clips[0], ("latents 2", "text 2", "b.mp4", "0")]),
        identity_of(SIGMAS, [clips[0], ("latents 2", "text 1", "b.mp4", "1")]),
    ]
    assert len({identity, *others}) == 5


def test_the_record_keeps_the_base_and_the_lowest() -> None:
    best = best_of(None, scored(0.15), 0)
    assert best == BestEvaluation(0, 0.15, base_loss=0.15, last_step=0)
    best = best_of(best, scored(0.12), 150)
    assert best == BestEvaluation(150, 0.12, base_loss=0.15, last_step=150)
    best = best_of(best, scored(0.1234), 200)
    assert best == BestEvaluation(150, 0.12, base_loss=0.15, last_step=200)
    # The earlier of two equal ones stays.
    assert best_of(best, scored(0.12), 250).step == 150


def test_other_clips_begin_a_new_record() -> None:
    best = best_of(best_of(None, scored(0.1, "x"), 0), scored(0.3, "y"), 50)
    assert best == BestEvaluation(50, 0.3, base_loss=None, last_step=50, identity="y")


def test_one_line_tells_the_loss_the_base_and_the_best() -> None:
    best = BestEvaluation(150, 0.12, base_loss=0.15, last_step=200)
    told = described(scored(0.1234), 200, best)
    assert told == "evaluation at step 200: loss 0.1234 (base 0.1500, best 0.1200 at 150)"
    told = described(scored(0.12), 150, best)
    assert told == "evaluation at step 150: loss 0.1200 (base 0.1500, the best so far)"
    assert described(scored(0.15), 0, BestEvaluation(0, 0.15, 0.15)) == (
        "evaluation at step 0: loss 0.1500 (the base)"
    )
    unknown = replace(best, base_loss=None)
    told = described(scored(0.1234), 200, unknown)
    assert told == "evaluation at step 200: loss 0.1234 (best 0.1200 at 150)"
