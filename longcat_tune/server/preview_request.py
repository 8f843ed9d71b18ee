"""What a preview is asked to render: from a form to a config.json and the words of `longcat-tune validate`.

The config's schema judges the values; nothing here knows the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import randbelow
from typing import Any

from starlette.datastructures import FormData

from longcat_tune.config.load import load_run_config
from longcat_tune.config.run import RunConfig, keys
from longcat_tune.errors import ConfigError
from longcat_tune.server.replies import Refusal
from longcat_tune.server.run_config import is_hub_id
from longcat_tune.server.workspace import Workspace, checked_name

FLAVOURS = ("final", "tiny")
OF_RUN = "run:"
"""Begins the choice of a run's base model."""
FOLDER = "model"
"""The choice of a folder or hub id, which a field of its own holds."""

LONGEST_PROMPT = 4000
MOST_LORAS = 8
MOST_STRENGTH = 10.0
PREVIEWS_OF_A_RENDER = 10
"""How often the live strip changes, about; each costs a few decoded frames."""

KEPT_SECTIONS = {"model", "memory"}
KEPT_KEYS = {"framerate", "flow_schedule_shift"}
"""What a preview takes over from the config of a run, beside those sections."""

FIELDS: Mapping[str, str] = {
    "negative_prompt": "validation_negative_prompt",
    "frames": "validation_num_video_frames",
    "steps": "validation_num_inference_steps",
    "guidance": "validation_guidance",
    "seed": "validation_seed",
}
"""Names of the form, and the keys that they set; width and height are one key."""

ALL_FIELDS = ("base", "model", "prompt", "width", "height", "start", *FIELDS)
SIZE = "validation_resolution"


@dataclass(frozen=True, slots=True)
class AppliedLora:
    """A LoRA of a preview.

    Attributes:
        path: file or checkpoint folder, as people see it.
        strength: 1 as trained.
    """

    path: str
    strength: float

    @property
    def strength_text(self) -> str:
        """As the command line reads it: no exponent."""
        return f"{self.strength:.4f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class PreviewRequest:
    """One filled-in form.

    Attributes:
        fields: what was written, by the names in ALL_FIELDS; all there, the seed chosen.
        loras: to apply together.
    """

    fields: Mapping[str, str]
    loras: tuple[AppliedLora, ...]


def read_form(form: FormData, workspace: Workspace) -> PreviewRequest:
    """Take a form, and judge what the schema does not: texts, LoRAs and where the model is.

    Args:
        form: as sent; a field that is missing is empty.
        workspace: which all files must be in.

    Raises:
        Refusal: something will not do; the text says what.
    """
    fields = {name: str(form.get(name, "")).strip() for name in ALL_FIELDS}
    for name in ("prompt", "negative_prompt"):
        # Textareas send \r\n; the words of a command cannot hold NUL, and a prompt needs no other controls.
        fields[name] = " ".join(fields[name].split())
        if len(fields[name]) > LONGEST_PROMPT or not fields[name].isprintable():
            raise Refusal(422, "preview.bad_prompt", name=name, limit=LONGEST_PROMPT)
    if not fields["prompt"]:
        raise Refusal(422, "preview.no_prompt")
    fields["seed"] = fields["seed"] or str(randbelow(2**32))
    paths = [str(path).strip() for path in form.getlist("lora")]
    strengths = [str(strength).strip() for strength in form.getlist("strength")]
    strengths += [""] * (len(paths) - len(strengths))
    loras = [_lora(*pair, workspace) for pair in zip(paths, strengths, strict=False) if pair[0]]
    if len(loras) > MOST_LORAS:
        raise Refusal(422, "preview.too_many_loras", count=len(loras), limit=MOST_LORAS)
    return PreviewRequest(fields, tuple(loras))


def _lora(path: str, strength: str, workspace: Workspace) -> AppliedLora:
    found = workspace.inside(path)
    if found.is_file() and found.suffix != ".safetensors":
        raise Refusal(422, "preview.not_a_lora", name=path[:80])
    try:
        value = float(strength or 1)
    except ValueError:
        value = math.nan
    if not abs(value) <= MOST_STRENGTH:
        raise Refusal(422, "preview.bad_strength", value=strength[:20], limit=int(MOST_STRENGTH))
    return AppliedLora(workspace.shown(found), value)


def build_config(request: PreviewRequest, workspace: Workspace) -> dict[str, Any]:
    """The config of a preview, without where its results go: only keys that are not at their default.

    Args:
        request: from `read_form`.
        workspace: has the run whose base is used, or the model's folder.

    Raises:
        Refusal: the base model is no known choice, or the schema refuses a value, in the schema's words.
    """
    source, model = _base(request.fields, workspace)
    fields = request.fields
    # An empty field is the default.
    asked = {key: fields[name] for name, key in FIELDS.items() if fields[name]}
    if fields["width"] or fields["height"]:
        asked[SIZE] = f"{fields['width']}x{fields['height']}"
    try:
        config = load_run_config(source, {**model, **asked})
    except ConfigError as error:
        told = re.sub(r"command line: (--)?", "", workspace.without_paths(str(error)))
        raise Refusal(422, told) from error
    kept = {
        key
        for key, (section, _) in keys().items()
        if section in KEPT_SECTIONS or key in KEPT_KEYS | asked.keys()
    }
    every = max(1, config.validation.validation_num_inference_steps // PREVIEWS_OF_A_RENDER)
    live = {"validation_preview": True, "validation_preview_steps": every}
    defaults = RunConfig().flat()
    changed = {key: value for key, value in config.flat().items() if value != defaults[key]}
    return {key: value for key, value in changed.items() if key in kept} | live


def _base(fields: Mapping[str, str], workspace: Workspace) -> tuple[Path | None, dict[str, str]]:
    """The config of the run whose base it is, if any, and the keys that name a model otherwise."""
    base = fields["base"]
    if base.startswith(OF_RUN):
        folder = workspace.run_folder(checked_name(base.removeprefix(OF_RUN)))
        return workspace.inside(f"{workspace.shown(folder)}/config.json", kind="file"), {}
    # Nobody has chosen how to fit it into memory: the plan does.
    if base in FLAVOURS:
        return None, {"model_flavour": base, "memory_plan": "auto"}
    if base == FOLDER:
        return None, {"pretrained_model_name_or_path": _model(fields, workspace), "memory_plan": "auto"}
    raise Refusal(422, "preview.no_base", name=base[:80])


def _model(fields: Mapping[str, str], workspace: Workspace) -> str:
    """A folder of the workspace, or the id of a repository on the hub where there is no such folder."""
    text = fields["model"]
    if is_hub_id(text, workspace):
        return text
    return command_word(workspace.inside(text, kind="folder"), workspace)


def command_words(
    request: PreviewRequest, config: Path, start: Path | None, workspace: Workspace
) -> list[str]:
    """The words after `longcat-tune` that render a preview, in the workspace's folder.

    Args:
        request: from `read_form`.
        config: its config.json.
        start: its start frame, if any.
        workspace: has all of these.
    """
    words = ["validate", "--config", command_word(config, workspace)]
    for lora in request.loras:
        path = command_word(workspace.inside(lora.path), workspace)
        words += ["--lora", f"{path}:{lora.strength_text}"]
    words += ["--prompt", request.fields["prompt"]]
    if start is not None:
        words += ["--image", command_word(start, workspace)]
    return words


def command_word(path: Path, workspace: Workspace) -> str:
    """A path for a command that runs in the workspace's folder."""
    return str(path.relative_to(workspace.home) if path.is_relative_to(workspace.home) else path)
