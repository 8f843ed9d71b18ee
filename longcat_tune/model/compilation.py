"""Whether torch.compile makes one kernel of every elementwise formula of a block.

Only of those: matrix products and attention are libraries' kernels already, in which a compiler finds
nothing, and weights that are streamed or quantized would be compiled anew for every place they lie in.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from longcat_tune.errors import DeviceError
from longcat_tune.model.elementwise import LEAN, PIECES, Cuts, Elementwise, Formula

logger = logging.getLogger(__name__)

WORTH_IT = 2048
"""Hidden width from which compiling pays for itself: below, a step is shorter than the compiler's minutes."""

COMPILERS = ("cc", "gcc", "clang", "g++")
KINDS_AT_MOST = 64
"""Compiled forms of one formula: batch of one or more, still or moving, first shape or any."""


def choose_elementwise(
    wanted: Literal["auto", "true", "false"], *, device: torch.device, hidden_size: int
) -> Elementwise:
    """Compiled formulas where they are wanted and work, else those that go piece by piece.

    Args:
        wanted: auto compiles on CUDA only, a large model only, and where a small function can be compiled.
        device: where the model computes.
        hidden_size: the model's.

    Raises:
        DeviceError: compiling is demanded and does not work here.
    """
    if wanted == "false" or (wanted == "auto" and not (device.type == "cuda" and hidden_size >= WORTH_IT)):
        return LEAN
    trouble = _trouble(device)
    if trouble is None:
        return compiled()
    if wanted == "true":
        raise DeviceError(f"compile (true): does not work on {device.type} ({trouble}); set compile to false")
    logger.warning("compile: auto leaves the model uncompiled, which is slower: %s", trouble)
    return LEAN


def compiled() -> Elementwise:
    """Every formula as one kernel of torch.compile, built at its first use."""
    return Elementwise(_Compiled())


class _Compiled:
    """Computes whole formulas, compiled; a gradient is one kernel with the formula it computes once more.

    A formula that cannot be compiled for what it is given goes piece by piece from then on.
    """

    def __init__(self) -> None:
        self._values: dict[Formula, Formula] = {}
        self._gradients: dict[Formula, Callable[..., Sequence[Tensor]]] = {}
        self._given_up: set[Formula] = set()

    def value(self, formula: Formula, cuts: Cuts, tensors: Sequence[Tensor]) -> Tensor:
        """As `Runner.value`; in one piece."""
        if formula in self._given_up:
            return PIECES.value(formula, cuts, tensors)
        _allow_kinds()
        if formula not in self._values:
            self._values[formula] = torch.compile(formula)
        try:
            return self._values[formula](*tensors)
        except torch._dynamo.exc.TorchDynamoException as error:  # noqa: SLF001
            self._give_up(formula, error)
            return PIECES.value(formula, cuts, tensors)

    def gradients(
        self, formula: Formula, cuts: Cuts, tensors: Sequence[Tensor], wanted: tuple[int, ...], grad: Tensor
    ) -> Sequence[Tensor]:
        """As `Runner.gradients`; in one piece."""
        if formula in self._given_up:
            return PIECES.gradients(formula, cuts, tensors, wanted, grad)
        _allow_kinds()
        if formula not in self._gradients:
            self._gradients[formula] = torch.compile(_gradients_of(formula))
        try:
            return self._gradients[formula](wanted, grad, *tensors)
        except torch._dynamo.exc.TorchDynamoException as error:  # noqa: SLF001
            self._give_up(formula, error)
            return PIECES.gradients(formula, cuts, tensors, wanted, grad)

    def _give_up(self, formula: Formula, error: Exception) -> None:
        self._given_up.add(formula)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning(
            "compile: %s goes on uncompiled, which is slower: %s; set compile to false to compile nothing",
            formula.__name__,
            reason,
        )


def _gradients_of(formula: Formula) -> Callable[..., Sequence[Tensor]]:
    def gradients(wanted: tuple[int, ...], grad: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        def of(*asked: Tensor) -> Tensor:
            inputs = list(tensors)
            for number, tensor in zip(wanted, asked, strict=True):
                inputs[number] = tensor
            return formula(*inputs)

        pull = torch.func.vjp(of, *[tensors[number] for number in wanted])[1]
        found: Sequence[Tensor] = pull(grad)
        return found

    # By code object torch counts compiled forms and remembers which axes change: each formula has its own.
    gradients.__code__ = gradients.__code__.replace(co_name=f"gradients_of_{formula.__name__}")
    return gradients


def _allow_kinds() -> None:
    """Raise torch's limit of 8 forms, past which it goes on uncompiled, with float32 copies of all tokens.

    At every call, because torch 2.12 and newer keep it per thread, and CUDA's backward has its own.
    """
    config = torch._dynamo.config  # noqa: SLF001 - torch's own name for it
    if config.cache_size_limit != KINDS_AT_MOST:
        config.cache_size_limit = KINDS_AT_MOST


def _trouble(device: torch.device) -> str | None:
    """Why nothing can be compiled here; None: a small function could."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton is not installed"
    if not any(shutil.which(name) for name in COMPILERS):
        return "there is no C compiler; install gcc"
    try:
        torch.compile(_trial)(torch.ones(8, device=device))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def _trial(x: Tensor) -> Tensor:
    return x * 2 + 1
