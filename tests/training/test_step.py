"""The step equals its formula written out, and its random numbers depend on nothing but their address."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial

import torch

from longcat_tune.flow.density import SigmaDensity
from longcat_tune.flow.noising import add_noise
from longcat_tune.training.step import (
    draw,
    noise_generator,
    seed_dropout,
    stable_seed,
    to_device,
    training_step,
)
from tests.training.toys import ToyModel, batch, untrained


def test_step_equals_the_formula_written_out() -> None:
    model = ToyModel(dropout=0.0)
    clean = to_device(batch(1, samples=2, cond=1), torch.device("cpu"))
    sigma = torch.tensor([0.9, 0.3])
    noise = torch.randn(clean.latents_BCTHW.shape, generator=torch.Generator().manual_seed(5))
    output = training_step(model, clean, sigma_B=sigma, noise_BCTHW=noise)
    for sample in range(2):
        x0, eps, s = clean.latents_BCTHW[sample], noise[sample], sigma[sample]
        noised = torch.cat([x0[:, :1], ((1 - s) * x0 + s * eps)[:, 1:]], dim=1)
        timestep = torch.tensor([0.0, 1000 * s, 1000 * s])
        got = model(
            noised[None],
            timestep[None],
            clean.text_BLD[sample][None],
            clean.mask_BL[sample][None],
            num_cond_latents=1,
        )[0]
        expected = (got - (x0 - eps))[:, 1:].square().mean()
        torch.testing.assert_close(output.loss_B[sample], expected)
    assert torch.equal(output.sigma_B, sigma)


def test_regularisation_data_hold_the_model_to_what_it_was() -> None:
    model, base = ToyModel(dropout=0.0), ToyModel(dropout=0.0)
    known = to_device(replace(batch(1, samples=2, cond=1), keeps_base=True), torch.device("cpu"))
    sigma = torch.tensor([0.9, 0.3])
    noise = torch.randn(known.latents_BCTHW.shape, generator=torch.Generator().manual_seed(5))
    as_base = partial(untrained, model)
    step = partial(training_step, model, known, sigma_B=sigma, noise_BCTHW=noise, as_base=as_base)
    assert step().loss_B.eq(0).all()
    model.mix.data += 0.3
    output = step()
    noised = add_noise(known.latents_BCTHW, noise, sigma, num_cond_latents=1)
    inputs = (noised.latents_BCTHW, noised.timestep_BT, known.text_BLD, known.mask_BL)
    was, now = (one(*inputs, num_cond_latents=1) for one in (base, model))
    torch.testing.assert_close(output.loss_B, (now - was)[:, :, 1:].square().flatten(1).mean(1))
    output.loss_B.sum().backward()
    assert model.mix.grad is not None
    model.mix.data -= 0.01 * model.mix.grad
    assert step().loss_B.sum() < output.loss_B.sum()


def test_noise_depends_on_seed_step_and_micro_batch_only() -> None:
    addresses = [(1, 1, 0), (2, 1, 0), (1, 2, 0), (1, 1, 1)]
    drawn = {}
    for seed, step, micro_batch in addresses:
        torch.manual_seed(step)
        generator = noise_generator(seed, step=step, micro_batch=micro_batch)
        drawn[seed, step, micro_batch] = draw(batch(0, samples=2), SigmaDensity().sample, generator)
    first_sigma, first_noise = drawn[addresses[0]]
    assert first_sigma.dtype == first_noise.dtype == torch.float32
    assert all(not torch.equal(drawn[other][1], first_noise) for other in addresses[1:])
    again = draw(batch(9, samples=2), SigmaDensity().sample, noise_generator(1, step=1, micro_batch=0))
    assert torch.equal(again[0], first_sigma)
    assert torch.equal(again[1], first_noise)


def test_seeds_do_not_run_into_each_other_and_survive_a_new_process() -> None:
    assert stable_seed(1, 11) != stable_seed(11, 1)
    assert stable_seed(42, "noise", 7, 0) != stable_seed(42, "dropout", 7, 0)
    code = "from longcat_tune.training.step import stable_seed; print(stable_seed(42, 'noise', 7, 0))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == stable_seed(42, "noise", 7, 0)


def test_dropout_repeats_for_its_step_whatever_was_drawn_between() -> None:
    seed_dropout(42, step=3, micro_batch=1)
    first = torch.nn.functional.dropout(torch.ones(64))
    torch.randn(100)
    seed_dropout(42, step=3, micro_batch=1)
    assert torch.equal(first, torch.nn.functional.dropout(torch.ones(64)))
    seed_dropout(42, step=4, micro_batch=1)
    assert not torch.equal(first, torch.nn.functional.dropout(torch.ones(64)))


def test_a_batch_is_float32_on_its_device() -> None:
    moved = to_device(batch(0), torch.device("cpu"))
    assert moved.latents_BCTHW.dtype == torch.float32
    assert torch.equal(moved.latents_BCTHW, batch(0).latents_BCTHW.float())
