"""The one door for attention kernels: torch's own, those of other packages, and what a model call plans.

Knows tensors of heads; nothing of blocks, clips or files. Letters: B batch, A heads, N query tokens, M key
tokens, d head width. Heads come before tokens everywhere: [B, A, N, d].
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from longcat_tune.errors import ConfigError, DeviceError
from longcat_tune.model.attention_trial import Heads, sample_heads, worst_error
from longcat_tune.model.block_sparse.plan import MIN_PIXELS, BlockSparsePlan
from longcat_tune.model.block_sparse.settings import BlockSparseSettings
from longcat_tune.model.block_sparse.trial import kernel_fault
from longcat_tune.model.token_order import TokenGrid, TokenOrder

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(q_BANd, k_BAMd, v_BAMd, keep_mask or None) -> [B, A, N, d]; the mask is boolean, True = attended,
or added to the logits."""

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A package's own function of queries, keys and values, without a mask."""

CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
CUDNN_FIRST_ON = (9, 10)
"""Major compute capabilities of data-center Hopper and Blackwell, where cuDNN's is the fastest by far."""


class VideoAttention(Protocol):
    """Attention among the video tokens of one model call, in place of the dense one of every block.

    Attributes:
        order: how the tokens lie in memory; None: frame by frame, as the patches come.
    """

    @property
    def order(self) -> TokenOrder | None:
        """How the tokens lie; condition tokens come first, in an order that only depends on their grid."""
        ...

    def __call__(self, q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor) -> Tensor:
        """Attend from a call's own tokens to all keys, cached ones first; condition sees only condition."""
        ...


PlanAttention = Callable[[TokenGrid, torch.device], VideoAttention | None]
"""Asked once per model call, for the grid of its tokens; None: this call is dense."""


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """What computes attention in a run.

    Attributes:
        function: dense attention, of text and of video.
        description: which kernel it is and where it runs, for the log.
        plan: the transformer's `plan_attention`; None: every call is dense.
    """

    function: AttentionFunction
    description: str
    plan: PlanAttention | None = None


def choose_attention(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    training: bool,
    block_sparse: BlockSparseSettings,
) -> AttentionChoice:
    """Pick the kernel that a config names, and make sure that it works here.

    A kernel that is not torch's is tried out: its result, and its gradients if the run trains, must be those
    of the definition.

    Args:
        name: a value of attention_implementation.
        device: where the model computes.
        dtype: what queries, keys and values are computed in; under autocast its dtype.
        head_dim: the model's.
        training: whether gradients will be needed.
        block_sparse: the checkpoint's, for `block_sparse`, and for `auto` on CUDA.

    Raises:
        ConfigError: the kernel's package is not installed, or the kernel cannot do what this run needs.
        DeviceError: the kernel does not work on this device.
    """
    if name == "math":
        return AttentionChoice(math_attention, "math: the definition written out in float32, slow")
    if name == "sdpa":
        return _choose_sdpa(device, dtype, head_dim)
    require_attention(name, device=device, training=training)
    if name in {"auto", "block_sparse"}:
        dense = _choose_sdpa(device, dtype, head_dim)
        if name == "auto" and (device.type != "cuda" or dtype.itemsize > 2):
            return dense
        find_fault = partial(
            kernel_fault, block_sparse, device=device, dtype=dtype, head_dim=head_dim, training=training
        )
        return _with_block_sparse(dense, block_sparse, find_fault, by_name=name == "block_sparse")
    if dtype not in {torch.bfloat16, torch.float16}:
        raise ConfigError(
            f"attention_implementation ({name}): computes in half precision only; set mixed_precision to "
            "bf16, or attention_implementation to auto"
        )
    package = PACKAGES[name]
    function = partial(_packaged_attention, package.imported(name), dtype)
    _try_out(name, function, sample_heads(device, dtype, head_dim, training=training), package.tolerance)
    return AttentionChoice(function, f"{name}: {package.module} on {_device_name(device)}")


def _with_block_sparse(
    dense: AttentionChoice,
    settings: BlockSparseSettings,
    find_fault: Callable[[], str | None],
    *,
    by_name: bool,
) -> AttentionChoice:
    """Sparse attention for the clips that the model was made sparse for, or for all if asked for by name."""
    plan = BlockSparsePlan(
        settings, dense.function, min_pixels=0 if by_name else MIN_PIXELS, find_fault=find_fault
    )
    clips = "moving clips" if by_name else "moving clips of the 720p class"
    return AttentionChoice(dense.function, f"block-sparse for {clips}, else {dense.description}", plan)


def require_attention(name: str, *, device: torch.device, training: bool) -> None:
    """Refuse a kernel that is not here, before anything is encoded or loaded; torch's own always are.

    Args:
        name: a value of attention_implementation.
        device: where the model will compute.
        training: whether gradients will be needed.

    Raises:
        ConfigError: the kernel's package is not installed, or it has no backward pass.
        DeviceError: the device is none of its kind.
    """
    if name == "block_sparse" and device.type not in {"cuda", "cpu"}:
        raise DeviceError(
            f"attention_implementation (block_sparse): needs a CUDA device, not {device.type}; "
            "set attention_implementation to auto"
        )
    if name not in PACKAGES:
        return
    if training and not PACKAGES[name].trains:
        raise ConfigError(
            f"attention_implementation ({name}): has no backward pass, so nothing can be trained with it; "
            f"train with auto, and render with {name} by longcat-tune validate"
        )
    if device.type != "cuda":
        raise DeviceError(
            f"attention_implementation ({name}): needs a CUDA device, not {device.type}; "
            "set attention_implementation to auto"
        )
    PACKAGES[name].imported(name)


def sdpa_attention(q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, keep: Tensor | None = None) -> Tensor:
    """Torch's fused attention, which picks the fastest kernel of the device."""
    out_BANd: Tensor = F.scaled_dot_product_attention(q_BANd, k_BAMd, v_BAMd, attn_mask=keep)
    return out_BANd


def cudnn_first_attention(
    q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Torch's fused attention by cuDNN, or the next best where cuDNN cannot; older torch prefers flash."""
    with _cudnn_first():
        return sdpa_attention(q_BANd, k_BAMd, v_BAMd, keep)


def math_attention(q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor, keep: Tensor | None = None) -> Tensor:
    """The definition, written out in float32: softmax(q k^T / sqrt(d)) v."""
    # Autocast would make both products bf16 again.
    with torch.autocast(q_BANd.device.type, enabled=False):
        scores_BANM: Tensor = q_BANd.float() @ k_BAMd.float().transpose(-1, -2) * q_BANd.shape[-1] ** -0.5
        if keep is not None and keep.dtype == torch.bool:
            scores_BANM = scores_BANM.masked_fill(~keep, float("-inf"))
        elif keep is not None:
            scores_BANM = scores_BANM + keep
        return (scores_BANM.softmax(-1) @ v_BAMd.float()).to(q_BANd.dtype)


@dataclass(frozen=True, slots=True)
class Package:
    """An attention kernel that is not torch's; all of them are for CUDA and for half precision.

    Attributes:
        module: what is imported.
        install: how to get it; ends the sentence "is not installed; ...".
        kernel: finds the function in the module, as one of [B, A, N, d].
        trains: whether it has a backward pass.
        tolerance: greatest relative error (Frobenius) against the definition in a trial.
    """

    module: str
    install: str
    kernel: Callable[[Any], Kernel]
    trains: bool = True
    tolerance: float = 0.02

    def imported(self, name: str) -> Kernel:
        """Import the package and find its kernel.

        Args:
            name: the config's.

        Raises:
            ConfigError: it is not installed, or was built for another torch.
        """
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            raise ConfigError(
                f"attention_implementation ({name}): the package {self.module} cannot be imported "
                f"({str(error).splitlines()[0]}); {self.install}, or set attention_implementation to auto"
            ) from error
        return self.kernel(module)


def _packaged_attention(
    kernel: Kernel,
    dtype: torch.dtype,
    q_BANd: Tensor,
    k_BAMd: Tensor,
    v_BAMd: Tensor,
    keep: Tensor | None = None,
) -> Tensor:
    if keep is not None:
        # Text whose tokens do not count alike: none of the packages takes such a mask, and it is short.
        return sdpa_attention(q_BANd, k_BAMd, v_BAMd, keep)
    # Autocast casts for torch's own functions only.
    return kernel(q_BANd.to(dtype), k_BAMd.to(dtype), v_BAMd.to(dtype))


def _tokens_first(kernel: Kernel) -> Kernel:
    """Make a kernel of [B, N, A, d] one of [B, A, N, d], by views."""

    def attend(q_BANd: Tensor, k_BAMd: Tensor, v_BAMd: Tensor) -> Tensor:
        return kernel(q_BANd.transpose(1, 2), k_BAMd.transpose(1, 2), v_BAMd.transpose(1, 2)).transpose(1, 2)

    return attend


def _flash(module: Any) -> Kernel:
    return _tokens_first(module.flash_attn_func)


def _flash3(module: Any) -> Kernel:
    if "return_attn_probs" not in inspect.signature(module.flash_attn_func).parameters:
        raise ConfigError(
            "attention_implementation (flash3): this flash_attn_interface is one of the first, whose result "
            "is another; build it again from flash-attention's present hopper folder"
        )
    return _tokens_first(module.flash_attn_func)


def _xformers(module: Any) -> Kernel:
    return _tokens_first(module.memory_efficient_attention)


def _sage(module: Any) -> Kernel:
    return partial(module.sageattn, tensor_layout="HND", is_causal=False)


PACKAGES = {
    "flash": Package("flash_attn", "pip install flash-attn --no-build-isolation", _flash),
    "flash3": Package(
        "flash_attn_interface", "build it from the hopper folder of Dao-AILab/flash-attention", _flash3
    ),
    "xformers": Package("xformers.ops", "pip install xformers", _xformers),
    # Its queries and keys are 8-bit numbers.
    "sage": Package("sageattention", "pip install sageattention", _sage, trains=False, tolerance=0.1),
}
"""Kernels of other packages, by their name in the config."""


def _cudnn_first() -> AbstractContextManager[None]:
    return sdpa_kernel(CUDNN_FIRST, set_priority=True)


def _choose_sdpa(device: torch.device, dtype: torch.dtype, head_dim: int) -> AttentionChoice:
    """Torch's fused attention, with the name of the kernel that it takes here."""
    if device.type not in {"cuda", "cpu"}:
        return AttentionChoice(sdpa_attention, f"sdpa: torch's fused attention on {device.type}")
    q, k, v = sample_heads(device, dtype, head_dim, training=False)
    function: AttentionFunction = sdpa_attention
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in CUDNN_FIRST_ON:
        function = cudnn_first_attention
        with _cudnn_first():
            backend = torch._fused_sdp_choice(q, k, v)  # noqa: SLF001 - what torch itself asks, and says
    else:
        backend = torch._fused_sdp_choice(q, k, v)  # noqa: SLF001
    kernel = SDPBackend(backend).name.removesuffix("_ATTENTION").lower()
    return AttentionChoice(
        function, f"sdpa: torch's fused attention, its {kernel} kernel on {_device_name(device)}"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _try_out(name: str, function: AttentionFunction, sample: Heads, tolerance: float) -> None:
    """Refuse a kernel that fails on the sample's device, or gives something else than the definition."""
    device = sample[0].device
    try:
        worst = worst_error(function, math_attention, sample)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DeviceError(
            f"attention_implementation ({name}): does not work on {_device_name(device)} ({reason}); "
            "set attention_implementation to auto"
        ) from error
    if worst > tolerance:
        raise DeviceError(
            f"attention_implementation ({name}): is off by {worst:.1%} on {_device_name(device)}, more than "
            f"{tolerance:.0%}; install its newest version, or set attention_implementation to auto"
        )
