"""The transformer and its parts against the official implementation's numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_tune.flow.loss import flow_loss
from longcat_tune.flow.noising import add_noise
from longcat_tune.model.dit import LongCatVideoTransformer
from tests.golden.cases import Case, parametrize, text_of


def forward(case: Case, model: LongCatVideoTransformer, tensors: dict[str, Tensor]) -> Tensor:
    return model(
        tensors["in.hidden_states"],
        tensors["in.timestep"],
        text_of(tensors),
        tensors.get("in.encoder_attention_mask"),
        num_cond_latents=case.call["num_cond_latents"],
    )


@parametrize("transformer_forward")
def test_forward_equals_official(case: Case) -> None:
    tensors = case.tensors()
    case.check(forward(case, case.model(), tensors), tensors["out.sample"])


@parametrize("transformer_forward_bf16")
def test_bf16_forward_keeps_the_float32_islands(case: Case) -> None:
    tensors = case.tensors()
    sample = forward(case, case.model(torch.bfloat16), tensors)
    assert sample.dtype == torch.float32
    case.check(sample, tensors["out.sample"])


@parametrize("kv_cache")
def test_cached_forward_equals_official(case: Case) -> None:
    tensors, model = case.tensors(), case.model()
    no_text = torch.zeros_like(text_of(tensors)[: len(tensors["in.cond_latents"])])
    cond_sample, kv_cache = model(
        tensors["in.cond_latents"],
        tensors["in.cond_timestep"],
        no_text,
        return_kv=True,
        skip_cross_attention=True,
    )
    sample = model(
        tensors["in.hidden_states"],
        tensors["in.timestep"],
        text_of(tensors),
        tensors["in.encoder_attention_mask"],
        num_cond_latents=case.call["num_cond_latents"],
        kv_cache=kv_cache,
    )
    case.check(cond_sample, tensors["out.cond_sample"])
    case.check(sample, tensors["out.sample"])
    for number, (k, v) in kv_cache.items():
        case.check(k, tensors[f"out.kv.{number}.k"])
        case.check(v, tensors[f"out.kv.{number}.v"])


def check_gradients(case: Case, model: LongCatVideoTransformer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name in tensors:
        if name.startswith("out.grad."):
            case.check(parameters[name.removeprefix("out.grad.")].grad, tensors[name], name)
    norms = torch.stack([parameters[name].grad.norm() for name in case.entry["param_order"]])
    case.check(norms, tensors["out.grad_norms"], "grad_norms")


@parametrize("transformer_gradient")
def test_gradients_equal_official(case: Case) -> None:
    tensors, model = case.tensors(), case.model()
    latents = tensors["in.hidden_states"].requires_grad_()
    text = tensors["in.encoder_hidden_states"].requires_grad_()
    loss = (forward(case, model, tensors) - tensors["in.target"]).square().mean()
    loss.backward()
    case.check(loss[None], tensors["out.loss"])
    check_gradients(case, model, tensors)
    case.check(latents.grad, tensors["out.grad_input.hidden_states"])
    case.check(text.grad, tensors["out.grad_input.encoder_hidden_states"])


@parametrize("training_objective")
def test_training_objective_equals_official(case: Case) -> None:
    tensors, model, k = case.tensors(), case.model(), case.call["num_cond_latents"]
    noised = add_noise(tensors["in.x0"], tensors["in.noise"], tensors["in.sigma"], num_cond_latents=k)
    output = model(
        noised.latents_BCTHW,
        noised.timestep_BT,
        text_of(tensors),
        tensors["in.encoder_attention_mask"],
        num_cond_latents=k,
    )
    loss_B = flow_loss(output, noised.target_BCTHW, num_cond_latents=k)
    loss_B.mean().backward()
    case.check(noised.latents_BCTHW, tensors["out.noisy"])
    case.check(noised.timestep_BT, tensors["out.timestep"])
    case.check(noised.target_BCTHW, tensors["out.target_raw"])
    case.check(output, tensors["out.raw_model_output"])
    case.check(loss_B, tensors["out.loss_per_sample"])
    case.check(loss_B.mean()[None], tensors["out.loss"])
    check_gradients(case, model, tensors)
