"""Captions to text features: UMT5, as released, or Qwen-2.5-VL. The one door to transformers.

Knows the checkpoint's `text_encoder/` and `tokenizer/`; knows nothing of caches, datasets or the transformer.
Letters: L tokens of a caption, D width of the features.
"""

from __future__ import annotations

import hashlib
import html
import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from longcat_tune.errors import CheckpointError
from longcat_tune.model.identity import component_identity, file_hash
from longcat_tune.types import TEXT_TOKENS, TextFeatures

logger = logging.getLogger(__name__)

Family = Literal["umt5", "qwen2_5_vl"]
Choice = Literal["auto", "umt5", "qwen2_5_vl"]
FAMILIES: tuple[Family, ...] = ("umt5", "qwen2_5_vl")

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json")
NAMED_AT_MOST = 5


def clean_prompt(text: str) -> str:
    """Mend broken encodings, resolve HTML entities and collapse white space, as the released model's prompts.

    Source: meituan-longcat/LongCat-Video, longcat_video/pipeline_longcat_video.py, prompt cleaning.
    """
    import ftfy

    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", mended).strip()


def text_encoder_identity(checkpoint: Path, *, hash_of: Callable[[Path], str] = file_hash) -> str:
    """Fingerprint of a checkpoint's text encoder and tokenizer, without loading them.

    Args:
        checkpoint: the folder that holds `text_encoder/` and `tokenizer/`.
        hash_of: as in `component_identity`.

    Raises:
        CheckpointError: a folder or one of its files is missing.
    """
    folder, tokenizer_folder = _components(checkpoint)
    parts = (
        component_identity(folder, hash_of=hash_of),
        component_identity(tokenizer_folder, suffixes=(".json", ".model", ".txt"), hash_of=hash_of),
    )
    return hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()


def features_width(checkpoint: Path, *, choice: Choice) -> int:
    """How wide a checkpoint's text features are before any zero padding, without loading the encoder.

    Args:
        checkpoint: the folder that holds `text_encoder/` and `tokenizer/`.
        choice: as in `load_text_encoder`.

    Raises:
        CheckpointError: a file is missing, or the encoder is not the one asked for.
    """
    folder, _ = _components(checkpoint)
    config = _read_config(folder)
    return _width(config, _family(folder, config, choice))


@dataclass(frozen=True, slots=True)
class TextEncoder:
    """A loaded encoder with its tokenizer.

    Attributes:
        module: called with token ids and mask, gives `last_hidden_state`.
        tokenizer: of the same checkpoint.
        added_width: zero columns to the right of the features.
    """

    module: nn.Module
    tokenizer: Any
    added_width: int

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[TextFeatures]:
        """Encode cleaned captions, each in a call of exactly TEXT_TOKENS tokens.

        Args:
            captions: from `clean_prompt`; what is longer is cut, which is logged with the number of captions.

        Returns:
            One per caption, real tokens only, in the encoder's dtype and on its device.
        """
        lengths = [len(ids) for ids in self.tokenizer(list(captions), verbose=False).input_ids]
        cut = sum(length > TEXT_TOKENS for length in lengths)
        if cut:
            logger.warning(
                "%d of %d captions have more than %d tokens (at most %d); their ends are cut off",
                cut, len(captions), TEXT_TOKENS, max(lengths),
            )  # fmt: skip
        return [self._encode_one(caption) for caption in captions]

    def _encode_one(self, caption: str) -> TextFeatures:
        tokens = self.tokenizer(
            caption,
            padding="max_length",
            padding_side="right",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        device = next(self.module.parameters()).device
        ids_1L, mask_1L = tokens.input_ids.to(device), tokens.attention_mask.to(device)
        hidden_1LD = self.module(input_ids=ids_1L, attention_mask=mask_1L).last_hidden_state
        text_LD = hidden_1LD[0, : int(mask_1L.sum())]
        return TextFeatures(nn.functional.pad(text_LD, (0, self.added_width)).clone())


def load_text_encoder(
    checkpoint: Path,
    *,
    choice: Choice,
    caption_channels: int,
    zero_pad: bool,
    dtype: torch.dtype,
    device: torch.device,
    prepare: Callable[[nn.Module], object] | None = None,
) -> TextEncoder:
    """Load a checkpoint's text encoder, strictly.

    Args:
        checkpoint: the folder that holds `text_encoder/` and `tokenizer/`.
        choice: the encoder asked for; `auto` takes what the checkpoint has.
        caption_channels: width of the features that the transformer takes.
        zero_pad: fill a narrower encoder's features up with zeros.
        dtype: precision of weights and features.
        device: where it works.
        prepare: may replace the loaded module's linear layers, which are in host memory then; what it leaves
            moves to the device.

    Raises:
        CheckpointError: files are missing or damaged, it is another encoder than asked for, or its width is
            not the transformer's.
    """
    folder, tokenizer_folder = _components(checkpoint)
    config = _read_config(folder)
    family = _family(folder, config, choice)
    width = _width(config, family)
    added_width = _added_width(folder, width, caption_channels, zero_pad=zero_pad)
    module = _load_module(folder, family, dtype)
    if prepare is not None:
        prepare(module)
    return TextEncoder(
        module=module.to(device).eval().requires_grad_(requires_grad=False),
        tokenizer=_load_tokenizer(tokenizer_folder),
        added_width=added_width,
    )


def _components(checkpoint: Path) -> tuple[Path, Path]:
    """The folders of encoder and tokenizer, with the files that each needs there."""
    folder, tokenizer_folder = checkpoint / ENCODER, checkpoint / TOKENIZER
    incomplete = "the checkpoint is incomplete, fetch it again"
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder / 'config.json'}: missing; {incomplete}")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no .safetensors weights; {incomplete}")
    if not any((tokenizer_folder / name).is_file() for name in TOKENIZER_FILES):
        names = ", ".join(TOKENIZER_FILES)
        raise CheckpointError(f"{tokenizer_folder}: holds none of {names}; {incomplete}")
    return folder, tokenizer_folder


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON (line {error.lineno}); fetch it again") from error
    return content


def _family(folder: Path, config: dict[str, Any], choice: Choice) -> Family:
    found = config.get("model_type")
    if found not in FAMILIES:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type ({found}) must be {' or '.join(FAMILIES)}; "
            "use the text encoder that the checkpoint was released with"
        )
    family: Family = found
    if choice not in ("auto", family):
        raise CheckpointError(
            f"text_encoder ({choice}) is not what {folder} holds, which is {family}; set text_encoder to "
            "auto, or pretrained_text_encoder_model_name_or_path to a checkpoint that has it"
        )
    return family


def _width(config: dict[str, Any], family: Family) -> int:
    if family == "umt5":
        return int(config["d_model"])
    # Older files keep the language model's fields beside those of the vision tower.
    return int(config.get("text_config", config)["hidden_size"])


def _added_width(folder: Path, width: int, caption_channels: int, *, zero_pad: bool) -> int:
    if width == caption_channels:
        return 0
    mismatch = (
        f"{folder}: gives features {width} wide, the transformer takes {caption_channels} (caption_channels)"
    )
    remedy = "use the text encoder of the transformer's own checkpoint"
    if width > caption_channels:
        raise CheckpointError(f"{mismatch}; {remedy}")
    if not zero_pad:
        raise CheckpointError(
            f"{mismatch}; {remedy}, or set text_encoder_zero_pad: true to fill up with zeros"
        )
    logger.warning("%s; filled up with zeros, which its weights have never seen", mismatch)
    return caption_channels - width


def _load_module(folder: Path, family: Family, dtype: torch.dtype) -> nn.Module:
    import transformers

    # Its own bar would be drawn into ours.
    transformers.logging.disable_progress_bar()
    classes = {
        "umt5": transformers.UMT5EncoderModel,
        "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    }
    try:
        module, report = classes[family].from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            # Reported below with the others; the library's own error does not say which.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder}: cannot be read as {family} ({reason}); fetch it again") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            names = ", ".join(map(str, sorted(report[kind])[:NAMED_AT_MOST]))
            rule = f"{len(report[kind])} {kind.replace('_', ' ')} ({names})"
            raise CheckpointError(f"{folder}: weights and config.json do not fit: {rule}; fetch it again")
    # Captions need neither the vision tower nor the word predictor.
    loaded: nn.Module = module.model.language_model if family == "qwen2_5_vl" else module
    return loaded


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder}: cannot be read as a tokenizer ({reason}); fetch it again"
        ) from error
