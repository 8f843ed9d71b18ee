"""Compiled formulas give the formulas' numbers, are compiled only where they help, and say why they are not.

The C++ compiler takes half a minute a formula on a CPU; all of torch.compile before it is used here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from longcat_tune.errors import DeviceError
from longcat_tune.memory.recompute import enable_recompute
from longcat_tune.model import compilation
from longcat_tune.model.compilation import choose_elementwise, compiled
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.elementwise import LEAN
from tests.model.test_elementwise import PLAIN, result_and_gradients

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def compile_by(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))


def test_compiled_formulas_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_by("aot_eager", monkeypatch)
    how = compiled()
    for name in ("modulate_ordered", "add_gated_ordered", "norm_rotate"):
        expected, grads = result_and_gradients(name, PLAIN, torch.float32)
        got, compiled_grads = result_and_gradients(name, how, torch.float32)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
        for one, other in zip(compiled_grads, grads, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_a_compiled_model_trains_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_by("eager", monkeypatch)
    latents = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    losses, grads = [], []
    for elementwise in (LEAN, compiled()):
        torch.manual_seed(0)
        model = LongCatVideoTransformer(4, 4, 32, 1, 2, 8, 4, 16, 16)
        model.elementwise = elementwise
        enable_recompute(model.blocks)
        loss = model(latents, torch.tensor([500.0]), torch.ones(1, 6, 8), num_cond_latents=1).square().mean()
        loss.backward()
        losses.append(loss.detach())
        grads.append(model.blocks[0].attn.qkv.weight.grad)
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grads[1], grads[0], atol=1e-6, rtol=1e-5)


def test_backward_in_a_thread_of_its_own_may_compile_as_many_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_by("eager", monkeypatch)
    limits = []

    def backward() -> None:
        result_and_gradients("modulate", compiled(), torch.float32)
        limits.append(torch._dynamo.config.cache_size_limit)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert limits == [compilation.KINDS_AT_MOST]


def test_every_formula_s_gradient_is_counted_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)
    for name in ("modulate", "norm_rotate", "swiglu"):
        result_and_gradients(name, compiled(), torch.float32)
    gradients = [one.__code__ for one in asked if one.__code__.co_name.startswith("gradients_of_")]
    assert len(gradients) == len(set(gradients)) == 3


def counting(monkeypatch: pytest.MonkeyPatch, fails: str | None = None) -> list[Any]:
    """torch.compile that notes what it is given, and does nothing or fails on use."""
    asked: list[Any] = []

    def compile_(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor) -> Tensor:
            if fails is not None:
                raise RuntimeError(f"{fails}\nmore")
            return function(*tensors)

        asked.append(function)
        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compilation.shutil, "which", lambda _name: "/usr/bin/cc")
    return asked


@pytest.mark.parametrize(
    ("wanted", "device", "hidden_size"),
    [("false", CUDA, 4096), ("auto", CPU, 4096), ("auto", CUDA, 128), ("auto", torch.device("mps"), 4096)],
)
def test_nothing_is_compiled_where_it_does_not_help(wanted, device, hidden_size, monkeypatch) -> None:
    asked = counting(monkeypatch)
    assert choose_elementwise(wanted, device=device, hidden_size=hidden_size) is LEAN
    assert asked == []


def test_a_demanded_compilation_is_tried_out_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)
    how = choose_elementwise("true", device=CPU, hidden_size=8)
    assert len(asked) == 1
    how.swiglu(torch.ones(1, 2, 4), torch.ones(1, 2, 4))
    assert [function.__name__ for function in asked[1:]] == ["swiglu_formula"]
    how.swiglu(torch.ones(1, 2, 4), torch.ones(1, 2, 4))
    assert len(asked) == 2


def test_a_compilation_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    counting(monkeypatch, fails="Python.h: No such file")
    with pytest.raises(DeviceError) as caught:
        choose_elementwise("true", device=CPU, hidden_size=8)
    assert str(caught.value) == (
        "compile (true): does not work on cpu (Python.h: No such file); set compile to false"
    )
    monkeypatch.setattr(compilation, "_trouble", lambda _device: "Python.h: No such file")
    with caplog.at_level(logging.WARNING):
        assert choose_elementwise("auto", device=CUDA, hidden_size=4096) is LEAN
    assert caplog.messages == [
        "compile: auto leaves the model uncompiled, which is slower: Python.h: No such file"
    ]


def test_a_formula_that_cannot_be_compiled_goes_on_in_pieces(monkeypatch, caplog) -> None:
    import torch._dynamo.exc

    asked: list[Any] = []

    def compile_(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*_: Any) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException("out of resource: shared memory\nmore")

        asked.append(function)
        return run

    monkeypatch.setattr(torch, "compile", compile_)
    how = compiled()
    with caplog.at_level(logging.WARNING):
        for name in ("swiglu", "modulate", "swiglu"):
            expected, grads = result_and_gradients(name, LEAN, torch.float32)
            got, own_grads = result_and_gradients(name, how, torch.float32)
            assert torch.equal(got, expected)
            assert all(torch.equal(one, other) for one, other in zip(own_grads, grads, strict=True))
    assert len(asked) == 2
    assert caplog.messages == [
        f"compile: {name}_formula goes on uncompiled, which is slower: out of resource: shared memory; set "
        "compile to false to compile nothing"
        for name in ("swiglu", "modulate")
    ]


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    counting(monkeypatch)
    monkeypatch.setattr(compilation.shutil, "which", lambda _name: None)
    with pytest.raises(DeviceError, match="there is no C compiler; install gcc"):
        choose_elementwise("true", device=CPU, hidden_size=8)
    monkeypatch.setattr(compilation, "find_spec", lambda _name: None)
    with pytest.raises(DeviceError, match="the package triton is not installed"):
        choose_elementwise("true", device=CUDA, hidden_size=8)
