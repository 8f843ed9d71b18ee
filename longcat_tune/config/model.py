"""Section model: which weights, in which precision, on which attention."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longcat_tune.config.schema import Instead, MayChange, Section
from longcat_tune.config.values import synonyms, word_of_bool

QuantizedPrecision = Literal["int8-quanto", "int4-quanto", "fp8-quanto", "int8-torchao", "fp8-torchao"]
WeightPrecision = Literal["bf16", "fp32"] | QuantizedPrecision

_PRECISION_NAMES = synonyms({"no_change": "bf16", "default": "bf16"})
_PRECISION_INSTEAD = Instead(
    nearest={
        "fp16": "bf16",
        "fp8uz-quanto": "fp8-quanto",
        "int8dq-torchao": "int8-torchao",
        "fp8wo-torchao": "fp8-torchao",
        "fp8-native": "fp8-torchao",
        "fp8-transformerengine": "fp8-torchao",
        "fp8-sdnq": "fp8-quanto",
        "int8-sdnq": "int8-quanto",
        "uint8-sdnq": "int8-quanto",
        **dict.fromkeys(("int16-sdnq", "uint16-sdnq", "fp16-sdnq"), "bf16"),
    },
    otherwise="int4-quanto",
)


class ModelSection(Section):
    """Which weights are trained on, and how they are held."""

    model_type: Annotated[Literal["lora"], Instead({"full": "lora"})] = Field(
        default="lora", description="What is trained; only LoRA, because the 13.6B base stays frozen."
    )
    model_family: Literal["longcat_video"] = Field(
        default="longcat_video", description="The one family known here."
    )
    model_flavour: Literal["final", "tiny"] = Field(
        default="final",
        description="final: meituan-longcat/LongCat-Video; tiny: the embedded miniature with the same "
        "architecture, for trying things out.",
    )
    pretrained_model_name_or_path: str | None = Field(
        default=None, description="Folder or hub id of a checkpoint. null: chosen by the flavour."
    )
    pretrained_transformer_model_name_or_path: str | None = Field(
        default=None, description="Folder or hub id of another transformer. null: the checkpoint's."
    )
    pretrained_vae_model_name_or_path: str | None = Field(
        default=None, description="Folder or hub id of another VAE. null: the checkpoint's."
    )
    pretrained_text_encoder_model_name_or_path: str | None = Field(
        default=None, description="Folder or hub id of another text encoder. null: the checkpoint's."
    )
    base_model_precision: Annotated[WeightPrecision, _PRECISION_NAMES, _PRECISION_INSTEAD] = Field(
        default="bf16",
        description="How the frozen base weights are held. no_change means bf16, the released precision; "
        "the quantized ones need less memory, see docs/memory.md.",
    )
    text_encoder_1_precision: Annotated[WeightPrecision, _PRECISION_NAMES, _PRECISION_INSTEAD] = Field(
        default="bf16", description="How the text encoder's weights are held while captions are encoded."
    )
    vae_dtype: Annotated[Literal["bf16", "fp32"], _PRECISION_NAMES, Instead({"fp16": "bf16"})] = Field(
        default="bf16", description="Precision of encoding clips and decoding renders."
    )
    mixed_precision: Annotated[Literal["bf16", "no"], Instead({"fp16": "bf16", "fp8": "bf16"})] = Field(
        default="bf16", description="Precision of the training computation; no: float32, slow."
    )
    quantize_via: Annotated[Literal["cpu", "accelerator"], MayChange(), Instead({"pipeline": "cpu"})] = Field(
        default="cpu", description="Where weights are quantized, a layer at a time."
    )
    text_encoder: Literal["auto", "umt5", "qwen2_5_vl"] = Field(
        default="auto",
        description="auto: what the checkpoint was trained with (the released one: UMT5-XXL); umt5 or "
        "qwen2_5_vl for checkpoints built with it.",
    )
    text_encoder_zero_pad: bool = Field(
        default=False,
        description="Allow a text encoder narrower than the model's captions, its features padded with "
        "zeros; the weights have never seen such input.",
    )
    attention_implementation: Annotated[
        Literal["auto", "block_sparse", "sdpa", "flash", "flash3", "xformers", "sage", "math"],
        MayChange(except_values=frozenset({"block_sparse"})),
        synonyms(
            {
                "diffusers": "sdpa",
                "native": "sdpa",
                "native-efficient": "sdpa",
                "native-flash": "sdpa",
                "cudnn": "sdpa",
                "native-math": "math",
                "flash-attn-2-hub": "flash",
                "flash-attn-hub": "flash",
                "flash-attn-3": "flash3",
                "flash-attn-3-hub": "flash3",
                "sageattention": "sage",
            },
            log=True,
        ),
        Instead({"sla": "block_sparse", "flex": "sdpa"}),
    ] = Field(
        default="auto",
        description="auto: on CUDA block_sparse for moving clips of at least 0.75 megapixels a frame, where "
        "the model was made for it, else the fastest exact kernel; block_sparse: the model's own sparse "
        "attention for every moving clip; sdpa: torch's fused attention; flash, flash3, xformers: of these "
        "packages, on CUDA; sage: of 8-bit queries and keys, for validate only; math: the definition written "
        "out, slow.",
    )
    compile: Annotated[Literal["auto", "true", "false"], MayChange(), BeforeValidator(word_of_bool)] = Field(
        default="auto",
        description="true: norms, modulation, gates and rotations are compiled by torch.compile, each to one "
        "kernel; needs a C compiler and takes a few minutes at the start. auto: on CUDA, if it works there.",
    )
