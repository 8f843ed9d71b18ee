"""From a checkpoint's name to the loaded transformer: sharded safetensors, strict, block by block.

Knows the release's folder layout; knows nothing of training, quantization, streaming or config.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from longcat_tune.errors import CheckpointError
from longcat_tune.model.attention import AttentionFunction, sdpa_attention
from longcat_tune.model.dit import LongCatVideoTransformer

logger = logging.getLogger(__name__)

FLAVOURS = {"final": "meituan-longcat/LongCat-Video"}
TINY = "tiny"
TRANSFORMER = "dit"
COMPONENTS = ("tokenizer", "text_encoder", "vae", "scheduler", TRANSFORMER)

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
INDEX_NAME = "diffusion_pytorch_model.safetensors.index.json"

CONFIG_FIELDS = (
    "in_channels",
    "out_channels",
    "hidden_size",
    "depth",
    "num_heads",
    "caption_channels",
    "mlp_ratio",
    "adaln_tembed_dim",
    "frequency_embedding_size",
    "patch_size",
    "text_tokens_zero_pad",
)
NAMED_AT_MOST = 5

PrepareBlock = Callable[[int, nn.Module], None]
"""What is done with a block, given its number, before the next one is read."""


def resolve_checkpoint(
    name_or_path: str | None, *, flavour: str, components: Sequence[str] = COMPONENTS
) -> Path:
    """Find a checkpoint's folder, downloading what is needed of it when the name is a hub id.

    Args:
        name_or_path: a local folder, a hub id, or None for the flavour's own.
        flavour: `final` or `tiny`.
        components: the folders needed; of the transformer's, files in the repository's root too, where a
            transformer by itself has them.

    Returns:
        The local folder that holds the components.

    Raises:
        CheckpointError: the folder or the hub id cannot be had.
    """
    local = local_checkpoint(name_or_path, flavour=flavour)
    return local or _download(name_or_path or FLAVOURS[flavour], components)


def local_checkpoint(name_or_path: str | None, *, flavour: str) -> Path | None:
    """Find a checkpoint's folder without asking the network.

    Args:
        name_or_path: as for `resolve_checkpoint`.
        flavour: as for `resolve_checkpoint`.

    Returns:
        None: the name is a hub id.

    Raises:
        CheckpointError: it is neither a folder nor a hub id.
    """
    if name_or_path is None:
        return Path(str(files("longcat_tune"))) / "assets" / TINY if flavour == TINY else None
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name_or_path.count("/") != 1:
        msg = (
            f"checkpoint {name_or_path}: no such folder, and not a hub id (owner/name); "
            "set pretrained_model_name_or_path to the folder that holds " + ", ".join(COMPONENTS)
        )
        raise CheckpointError(msg)
    return None


def _download(hub_id: str, components: Sequence[str]) -> Path:
    # Imported here: reading a local checkpoint needs no hub client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [f"{name}/*" for name in components]
    if TRANSFORMER in components:
        patterns += ["config.json", "diffusion_pytorch_model*"]
    names = ", ".join(components)
    logger.info("Looking up %s of %s on the hub; the first time this downloads them", names, hub_id)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    # OSError: what the hub client raises for a missing entry, an answer of the hub and a full disk.
    except (OSError, HFValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        msg = (
            f"checkpoint {hub_id}: could not be downloaded ({reason}); check the network and the name, "
            "or set pretrained_model_name_or_path to a local folder"
        )
        raise CheckpointError(msg) from error


def read_transformer_config(folder: Path) -> dict[str, Any]:
    """The architecture fields of a transformer folder's config.json.

    Raises:
        CheckpointError: the file is missing, not JSON, or lacks a field.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"{path}: missing; a transformer folder holds config.json and its safetensors shards"
        raise CheckpointError(msg) from error
    except json.JSONDecodeError as error:
        msg = f"{path}: not valid JSON (line {error.lineno}); fetch the checkpoint again"
        raise CheckpointError(msg) from error
    missing = [name for name in CONFIG_FIELDS if name not in content]
    if missing:
        msg = f"{path}: lacks {', '.join(missing)}; is this LongCat-Video's transformer (dit/)?"
        raise CheckpointError(msg)
    fields = {name: content[name] for name in CONFIG_FIELDS}
    fields["patch_size"] = tuple(fields["patch_size"])
    return fields


def empty_transformer(folder: Path, *, attend: AttentionFunction = sdpa_attention) -> LongCatVideoTransformer:
    """Build the transformer on the meta device: names and shapes without memory.

    Raises:
        CheckpointError: the folder's config.json is missing or wrong.
    """
    with torch.device("meta"):
        return LongCatVideoTransformer(**read_transformer_config(folder), attend=attend)


def load_transformer(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attend: AttentionFunction = sdpa_attention,
    prepare_block: PrepareBlock | None = None,
    block_device: Callable[[int], torch.device] | None = None,
) -> LongCatVideoTransformer:
    """Build the transformer without memory and fill it from its shards, block after block.

    Names and shapes are checked before the first weight is read. When a block is read, those before it are
    in their final form already, so loading never holds more than one block beyond that.

    Args:
        folder: the `dit` folder of a checkpoint.
        dtype: what every weight is cast to as it is read.
        device: where the weights go.
        attend: the attention kernel.
        prepare_block: called with a block's number and the block as soon as its weights are there; may
            replace its layers and move them.
        block_device: where a block's weights go as they are read; None: to `device`.

    Returns:
        The model in evaluation mode, frozen.

    Raises:
        CheckpointError: a shard is missing or unreadable, or names or shapes differ from the model's.
    """
    model = empty_transformer(folder, attend=attend)
    shard_of = _locate(folder, model)
    rest = [name for name in shard_of if not name.startswith("blocks.")]
    _fill(model, rest, shard_of, dtype=dtype, device=device)
    for number, block in enumerate(model.blocks):
        names = [name for name in shard_of if name.startswith(f"blocks.{number}.")]
        _fill(model, names, shard_of, dtype=dtype, device=block_device(number) if block_device else device)
        if prepare_block is not None:
            prepare_block(number, block)
    return model.requires_grad_(requires_grad=False).eval()


def _locate(folder: Path, model: nn.Module) -> dict[str, Path]:
    """Tell each tensor's shard, in the model's order; refuse names and shapes that are not the model's."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    found: dict[str, Path] = {}
    for path in shard_paths(folder):
        shapes = _shapes(path)
        found |= dict.fromkeys(shapes, path)
        for name in sorted(shapes.keys() & expected.keys()):
            if shapes[name] != expected[name]:
                msg = f"{folder}: {name} has shape {shapes[name]}, the model's is {expected[name]}"
                raise CheckpointError(msg)
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    for kind, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            shown = ", ".join(names[:NAMED_AT_MOST]) + (", ..." if len(names) > NAMED_AT_MOST else "")
            msg = f"{folder}: {kind} {len(names)} tensors: {shown}; fetch the checkpoint again"
            raise CheckpointError(msg)
    return {name: found[name] for name in expected}


def _fill(
    model: nn.Module,
    names: Sequence[str],
    shard_of: Mapping[str, Path],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Read some weights into a model.

    A shard is opened anew for each, and each is copied: what was read of an open file stays in memory until
    the file is closed and nothing refers to it any more.
    """
    for name in names:
        with _opened(shard_of[name]) as shard:
            _assign(model, name, shard.get_tensor(name).to(device=device, dtype=dtype, copy=True))


def _shapes(path: Path) -> dict[str, list[int]]:
    with _opened(path) as shard:
        return {name: shard.get_slice(name).get_shape() for name in shard.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except SafetensorError as error:
        msg = f"{path}: damaged or incomplete ({error}); fetch it again"
        raise CheckpointError(msg) from error


def shard_paths(folder: Path) -> list[Path]:
    """The weight files of a component, all of which are there.

    Raises:
        CheckpointError: there is none, or the index names one that is missing.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        if (folder / WEIGHTS_NAME).is_file():
            return [folder / WEIGHTS_NAME]
        msg = f"{folder}: holds neither {INDEX_NAME} nor {WEIGHTS_NAME}; fetch the checkpoint again"
        raise CheckpointError(msg)
    weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    paths = [folder / name for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not path.is_file():
            msg = f"{path}: this shard is missing; fetch the checkpoint again"
            raise CheckpointError(msg)
    return paths


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    model.get_submodule(owner_name).register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
