"""Make the miniature's tokenizer, and train its small UMT5 encoder from nothing; seeded, about two minutes.

The encoder learns two things that features of a real one have: every token tells the whole sentence (which
shape, colour, motion and background, in English and Chinese alike), and still tells its own word. Like a real
one it has read of more than the transformer is shown: the words of the demo's concepts are words to it.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longcat_tune.data.demo import (
    ALL_COLOURS,
    ALL_MOTIONS,
    ALL_SHAPES,
    Names,
    all_names,
)
from longcat_tune.data.demo_probe import FIELDS

SEED = 20260502
TEXT_WIDTH = 64
PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
FIRST_WORD = 3
"""Tokens before it are PAD, EOS and UNKNOWN."""
STEPS, BATCH, LEARNING_RATE = 2000, 128, 2e-3
CORRUPTED = 0.12
"""Share of words that are replaced by any other in training."""
NO_LABEL = -100


class Figure(NamedTuple):
    """What a shape with so many points is called."""

    english: str
    chinese: str


FIGURES = {
    3: Figure("trigon", "三叉形"),
    4: Figure("tetragon", "四叉形"),
    5: Figure("pentagon", "五叉形"),
    6: Figure("hexagon", "六叉形"),
}
FIGURE_DEPTHS = {"deep": "深", "notched": "浅", "flat": "平"}
"""How far in the notches between a figure's points are."""
STAND_IN = "cross"
"""The shape whose name is replaced in captions of figures."""
ATTRIBUTES = {
    "shape": list(ALL_SHAPES),
    "colour": list(ALL_COLOURS),
    "motion": list(ALL_MOTIONS),
    "background": list(ALL_COLOURS),
    "points": list(FIGURES),
    "depth": list(FIGURE_DEPTHS),
}
"""What a sentence tells, and the answers; those of figures have no shape, and only they the last two."""


# --- tokenizer -------------------------------------------------------------------------------------------


def demo_words() -> list[str]:
    """Every word of every caption, those of concepts included, as pieces of the tokenizer."""
    english = {"a", "an", "on", "background", "over", *ALL_SHAPES, *ALL_COLOURS}
    english |= {word for motion in ALL_MOTIONS.values() for word in motion.english.split()}
    chinese = {"的", "在", "背景上"}
    chinese |= {one.chinese for one in (*ALL_SHAPES.values(), *ALL_COLOURS.values(), *ALL_MOTIONS.values())}
    return [*(f"\u2581{word}" for word in sorted(english)), "\u2581一个", *sorted(chinese)]


def figure_words() -> list[str]:
    """Every word that only captions of figures have, as pieces of the tokenizer."""
    english = [*FIGURE_DEPTHS, *(one.english for one in FIGURES.values())]
    return [
        *(f"\u2581{word}" for word in english),
        *FIGURE_DEPTHS.values(),
        *(one.chinese for one in FIGURES.values()),
    ]


def of_figure(captions: tuple[str, ...], depth: str, points: int) -> tuple[str, ...]:
    """Captions of the stand-in, made those of a figure."""
    english, chinese = FIGURES[points]
    name, name_chinese = f"{depth} {english}", f"{FIGURE_DEPTHS[depth]}{chinese}"
    return tuple(
        one.replace(STAND_IN, name).replace(ALL_SHAPES[STAND_IN].chinese, name_chinese) for one in captions
    )


def make_tokenizer(folder: Path) -> tuple[int, int]:
    """Write a Unigram tokenizer: the captions' words, then letters, then bytes, so that any text has tokens.

    Returns:
        The number of words, which follow the special tokens, and the size of the vocabulary.
    """
    words = [(word, -5.0) for word in demo_words()]
    # Far less likely than any word, so that a known word is never spelt.
    letters = [(letter, -20.0) for letter in ["\u2581", *map(chr, range(ord("!"), ord("~") + 1))]]
    data_bytes = [(f"<0x{value:02X}>", -30.0) for value in range(256)]
    figures = [(word, -5.0) for word in figure_words()]
    vocabulary = [(PAD, 0.0), (EOS, 0.0), (UNKNOWN, 0.0), *words, *letters, *data_bytes, *figures]

    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, model_max_length=512
    )
    wrapped.save_pretrained(folder)
    # transformers 5 writes a class that version 4 does not know; this one loads in both.
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(words), len(vocabulary)


# --- text encoder ----------------------------------------------------------------------------------------


def training_captions(tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """All captions that are not held out: token ids [N, L] and attribute labels [N, A]."""
    captions, labels = [], []
    figures = itertools.cycle(itertools.product(FIGURE_DEPTHS, FIGURES))
    for names in all_names(concepts=True):
        if names.is_held_out:
            continue
        captions += names.captions
        labels += [attributes(names)] * len(names.captions)
        if names.shape == STAND_IN:
            depth, points = next(figures)
            captions += of_figure(names.captions, depth, points)
            labels += [attributes(names, shape=None, points=points, depth=depth)] * len(names.captions)
    ids_NL = tokenizer(captions, padding=True, return_tensors="pt").input_ids
    return ids_NL, torch.tensor([list(row.values()) for row in labels])


def attributes(names: Names, **other: str | int | None) -> dict[str, int]:
    """What a caption says, as a number per attribute; NO_LABEL where it says nothing.

    Args:
        names: of the caption.
        other: what it says instead of them, or beside.
    """
    said = dict.fromkeys(ATTRIBUTES) | asdict(names) | other
    return {
        field: NO_LABEL if said[field] is None else pool.index(said[field])
        for field, pool in ATTRIBUTES.items()
    }


def corrupt(ids_BL: Tensor, words: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace some words by any others; returns new ids and where they changed."""
    is_word_BL = (ids_BL >= FIRST_WORD) & (ids_BL < FIRST_WORD + words)
    changed_BL = is_word_BL & (torch.rand(ids_BL.shape, generator=generator) < CORRUPTED)
    drawn_BL = torch.randint(FIRST_WORD, FIRST_WORD + words, ids_BL.shape, generator=generator)
    return torch.where(changed_BL, drawn_BL, ids_BL), changed_BL


def train_text_encoder(folder: Path, tokenizer_folder: Path, words: int, vocabulary: int) -> None:
    """Train and write the encoder in bfloat16; prints how well its features tell sentences and words."""
    torch.manual_seed(SEED)
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    encoder = UMT5EncoderModel(config)
    heads = nn.ModuleDict({name: nn.Linear(TEXT_WIDTH, len(pool)) for name, pool in ATTRIBUTES.items()})
    heads["word"] = nn.Linear(TEXT_WIDTH, vocabulary)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    ids_NL, labels_NA = training_captions(tokenizer)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], LEARNING_RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    generator = torch.Generator().manual_seed(SEED)
    for step in range(STEPS):
        rows = torch.randint(len(ids_NL), (BATCH,), generator=generator)
        ids_BL, changed_BL = corrupt(ids_NL[rows], words, generator)
        mask_BL = ids_BL != 0
        hidden_BLD = encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        loss = F.cross_entropy(heads["word"](hidden_BLD)[mask_BL], ids_BL[mask_BL])
        # A sentence with a changed word may say something else.
        whole_B = ~changed_BL.any(dim=1)
        for column, name in enumerate(ATTRIBUTES):
            target_BL = labels_NA[rows, column][:, None].where((whole_B[:, None]) & mask_BL, NO_LABEL)
            loss = loss + F.cross_entropy(heads[name](hidden_BLD).flatten(0, 1), target_BL.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"text encoder {step + 1}/{STEPS}: loss {loss.item():.3f}", flush=True)
    report(encoder, heads, tokenizer)
    unit_spread(encoder, ids_NL)
    encoder.to(torch.bfloat16).save_pretrained(folder)


@torch.inference_mode()
def unit_spread(encoder: UMT5EncoderModel, ids_NL: Tensor) -> None:
    """Scale the features of real tokens to a standard deviation of 1, as far as the last norm decides."""
    mask_NL = ids_NL != 0
    features = encoder(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state[mask_NL]
    encoder.encoder.final_layer_norm.weight /= features.std()


@torch.inference_mode()
def report(encoder: UMT5EncoderModel, heads: nn.ModuleDict, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print the share of held-out captions whose every token tells each attribute."""
    held_out = [names for names in all_names() if names.is_held_out]
    for language, label in enumerate(("long English", "short English", "Chinese")):
        tokens = tokenizer(
            [names.captions[language] for names in held_out], padding=True, return_tensors="pt"
        )
        hidden_BLD = encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).last_hidden_state
        shares = []
        for name in FIELDS:
            wanted_B = torch.tensor([attributes(one)[name] for one in held_out])
            right_BL = (heads[name](hidden_BLD).argmax(-1) == wanted_B[:, None]) | (
                tokens.attention_mask == 0
            )
            shares.append(f"{name} {right_BL.all(dim=1).float().mean():.3f}")
        print(f"{label}: {', '.join(shares)}; features' spread {np.std(hidden_BLD.numpy()):.2f}", flush=True)
