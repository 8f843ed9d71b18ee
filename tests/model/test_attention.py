"""Every attention kernel agrees with the written-out definition, and one that cannot be had says why.

Packages that are not installed are replaced by a module that insists on its real function's layout.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from longcat_tune.errors import ConfigError, DeviceError
from longcat_tune.model import attention
from longcat_tune.model.attention import (
    PACKAGES,
    choose_attention,
    cudnn_first_attention,
    math_attention,
    require_attention,
    sdpa_attention,
)
from longcat_tune.model.attention_trial import sample_heads, worst_error
from longcat_tune.model.block_sparse.settings import BlockSparseSettings

REAL_LAYOUTS = [((2, 4, 18, 32), 18), ((1, 2, 12, 64), 30), ((2, 2, 7, 128), 5)]
CPU = torch.device("cpu")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def heads(shape: tuple[int, ...], keys: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch, num_heads, _, width = shape
    k, v = torch.randn(2, batch, num_heads, keys, width, generator=generator)
    return torch.randn(shape, generator=generator), k, v


def mask_of(keys: int, batch: int) -> Tensor:
    return (torch.arange(keys) < torch.tensor([[keys - 2], [3]])[:batch])[:, None, None, :]


def tokens_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The definition, of [B, N, A, d] and in half precision only; sizes tell a swapped layout."""
    assert q.shape[2] == k.shape[2] == 2
    assert q.shape[1] > 2
    assert {q.dtype, k.dtype, v.dtype} <= {torch.bfloat16, torch.float16}
    return math_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def flash3(q: Tensor, k: Tensor, v: Tensor, *, return_attn_probs: bool = False) -> Tensor:
    assert not return_attn_probs
    return tokens_first(q, k, v)


def heads_first(q: Tensor, k: Tensor, v: Tensor, *, tensor_layout: str, is_causal: bool) -> Tensor:
    assert (tensor_layout, is_causal) == ("HND", False)
    return tokens_first(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


STAND_INS = {
    "flash": SimpleNamespace(flash_attn_func=tokens_first),
    "flash3": SimpleNamespace(flash_attn_func=flash3),
    "xformers": SimpleNamespace(memory_efficient_attention=tokens_first),
    "sage": SimpleNamespace(sageattn=heads_first),
}


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, module: Any = None) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name].module, module or STAND_INS[name])


def choose(name: str, **changes: Any) -> attention.AttentionChoice:
    settings = {"device": CPU, "dtype": torch.float32, "head_dim": 32, "training": True}
    settings |= {"block_sparse": BlockSparseSettings()} | changes
    return choose_attention(name, **settings)


@pytest.mark.parametrize("function", [sdpa_attention, cudnn_first_attention])
@pytest.mark.parametrize(("shape", "keys"), REAL_LAYOUTS)
@pytest.mark.parametrize("masked", [False, True])
def test_torch_functions_equal_the_definition(function, shape, keys, masked) -> None:
    q, k, v = heads(shape, keys)
    keep = mask_of(keys, shape[0]) if masked else None
    expected = math_attention(q, k, v, keep)
    torch.testing.assert_close(function(q, k, v, keep), expected, atol=2e-6, rtol=1e-5)


def test_the_definition_stays_float32_under_autocast() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    expected = math_attention(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(math_attention(q, k, v), expected)


@pytest.mark.parametrize(("name", "function"), [("math", math_attention), ("auto", sdpa_attention)])
def test_what_is_torchs_own_is_named(name: str, function: Any) -> None:
    choice = choose(name)
    assert choice.function is function
    assert choice.plan is None
    kernel = "definition written out" if name == "math" else "its flash kernel on cpu"
    assert kernel in choice.description


def test_the_named_kernel_is_the_one_that_torch_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fused_choice(*tensors: Tensor) -> int:
        asked.append([tensor.shape[-1] for tensor in tensors])
        return SDPBackend.CUDNN_ATTENTION.value

    monkeypatch.setattr(torch, "_fused_sdp_choice", fused_choice)
    assert "its cudnn kernel on cpu" in choose("sdpa", head_dim=128).description
    assert asked == [[128, 128, 128]]


def test_cudnn_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = []

    def look(*_: Any, **__: Any) -> Tensor:
        orders.append(torch._C._get_sdp_priority_order()[:2])
        return torch.zeros(1)

    monkeypatch.setattr(F, "scaled_dot_product_attention", look)
    before = torch._C._get_sdp_priority_order()
    cudnn_first_attention(*heads((1, 2, 4, 8), 4))
    assert orders == [[SDPBackend.CUDNN_ATTENTION.value, SDPBackend.FLASH_ATTENTION.value]]
    assert torch._C._get_sdp_priority_order() == before


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize(("shape", "keys"), [((1, 2, 12, 64), 30), ((2, 2, 7, 128), 5)])
def test_a_packages_kernel_gets_its_own_layout_and_half_precision(name, shape, keys, monkeypatch) -> None:
    stand_in(monkeypatch, name)
    function = partial(attention._packaged_attention, PACKAGES[name].imported(name), torch.bfloat16)
    q, k, v = heads(shape, keys)
    expected = math_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    # Float32 queries come of float32 norms under autocast, which does not reach a package's functions.
    got = function(q, k, v.bfloat16(), None)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, expected)
    keep = mask_of(keys, shape[0])
    torch.testing.assert_close(function(q, k, v, keep), math_attention(q, k, v, keep), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = PACKAGES[name].module
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        PACKAGES[name].imported(name)
    message = str(caught.value)
    assert message.startswith(f"attention_implementation ({name}): the package {module} cannot be imported (")
    assert message.endswith(f"); {PACKAGES[name].install}, or set attention_implementation to auto")


def test_the_first_flash3_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash3", STAND_INS["flash"])
    with pytest.raises(ConfigError, match="this flash_attn_interface is one of the first"):
        PACKAGES["flash3"].imported("flash3")


@pytest.mark.parametrize("name", ["flash", "flash3", "xformers"])
def test_other_kernels_need_cuda(name: str) -> None:
    with pytest.raises(DeviceError) as caught:
        choose(name)
    assert str(caught.value) == (
        f"attention_implementation ({name}): needs a CUDA device, not cpu; set attention_implementation to "
        "auto"
    )


def test_nothing_is_trained_with_sage() -> None:
    with pytest.raises(ConfigError) as caught:
        choose("sage")
    assert str(caught.value) == (
        "attention_implementation (sage): has no backward pass, so nothing can be trained with it; train "
        "with auto, and render with sage by longcat-tune validate"
    )
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        choose("sage", training=False)


def test_what_is_here_is_not_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PACKAGES:
        stand_in(monkeypatch, name)
        require_attention(name, device=torch.device("cuda"), training=name != "sage")
    require_attention("auto", device=CPU, training=True)


def test_other_kernels_need_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "flash")
    with pytest.raises(ConfigError, match=r"computes in half precision only; set mixed_precision to bf16"):
        choose("flash", device=torch.device("cuda"))


def skewed(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    return sdpa_attention(q, k, v * 1.05, keep)


def wrong_gradients(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
    return sdpa_attention(q, k.detach() + 0 * k, v, keep)


def fails(*_: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_a_trial_accepts_what_is_right(dtype: torch.dtype, training: bool) -> None:
    sample = sample_heads(CPU, dtype, 64, training=training)
    assert worst_error(sdpa_attention, math_attention, sample) < (1e-5 if dtype == torch.float32 else 0.01)


def test_a_trial_finds_wrong_results_gradients_and_nan() -> None:
    still = sample_heads(CPU, torch.float32, 64, training=False)
    trained = sample_heads(CPU, torch.float32, 64, training=True)
    assert worst_error(skewed, math_attention, still) == pytest.approx(0.05, rel=1e-3)
    assert worst_error(wrong_gradients, math_attention, still) < 1e-5
    assert worst_error(wrong_gradients, math_attention, trained) > 0.5
    assert worst_error(lambda q, k, v, _: q * math.nan, math_attention, still) == math.inf


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (skewed, r"is off by 10\.2% on cpu, more than 2%; install its newest version, or set"),
        (fails, r"does not work on cpu \(FlashAttention only supports Ampere GPUs or newer\.\); set"),
    ],
)
def test_a_kernel_that_fails_its_trial_is_refused(function: Any, message: str) -> None:
    with pytest.raises(DeviceError, match=rf"attention_implementation \(flash\): {message}"):
        attention._try_out("flash", function, sample_heads(CPU, torch.float32, 64, training=True), 0.02)


@pytest.mark.gpu
@NEEDS_CUDA
@pytest.mark.parametrize("name", ["auto", "sdpa", *PACKAGES])
def test_every_kernel_that_is_installed_works_on_cuda(name: str) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name].module)
    training = name != "sage"
    device = torch.device("cuda")
    choice = choose(name, device=device, dtype=torch.bfloat16, head_dim=128, training=training)
    sample = sample_heads(device, torch.bfloat16, 128, training=training)
    assert worst_error(choice.function, math_attention, sample) < (0.02 if training else 0.1)
