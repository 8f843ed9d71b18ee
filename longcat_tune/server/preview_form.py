"""What the form of a preview offers and what stands in it at first: bases, LoRA files, values of runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat_tune.config.run import RunConfig
from longcat_tune.config.values import FrameSize, parse_frame_size
from longcat_tune.errors import ConfigError
from longcat_tune.server.gallery_loras import read_checkpoints
from longcat_tune.server.preview_request import FIELDS, FOLDER, OF_RUN, SIZE, AppliedLora
from longcat_tune.server.preview_store import Preview
from longcat_tune.server.run_config import read_written
from longcat_tune.server.workspace import NAME, Workspace

PROMPT = "validation_prompt"

TINY = {"width": "192", "height": "128", "frames": "17", "steps": "12"}
"""What the miniature renders in seconds on any machine."""


@dataclass(frozen=True, slots=True)
class Base:
    """A base model to choose.

    Attributes:
        value: of the choice, as `read_form` takes it.
        run: whose base it is; None for the others.
        values: what stands in the form with it, by field.
    """

    value: str
    run: str | None
    values: Mapping[str, str]

    @property
    def as_json(self) -> str:
        """The values, for the page's script."""
        return json.dumps(self.values)


@dataclass(frozen=True, slots=True)
class KnownLora:
    """A LoRA of a run.

    Attributes:
        path: of a file, as people see it.
        run: that trained it.
        step: finished steps; None for the last one.
    """

    path: str
    run: str
    step: int | None


@dataclass(frozen=True, slots=True)
class FormValues:
    """What stands in the form.

    Attributes:
        fields: by name.
        loras: rows of LoRAs; at least one, which may be empty.
        start: address of the picture of the start frame; empty for none.
    """

    fields: Mapping[str, str]
    loras: tuple[AppliedLora, ...]
    start: str


def find_bases(workspace: Workspace) -> tuple[Base, ...]:
    """Every base model to choose: those of runs, newest first, then the released one and others."""
    runs = sorted(_runs(workspace), key=lambda config: config.stat().st_mtime_ns, reverse=True)
    found = [base for config in runs if (base := _of_run(config)) is not None]
    plain = _values({})
    others = (("final", plain), ("tiny", plain | TINY), (FOLDER, plain))
    return (*found, *(Base(value, None, values) for value, values in others))


def find_loras(workspace: Workspace) -> Iterator[KnownLora]:
    """The LoRA files of all runs, the last ones of each first."""
    for config in _runs(workspace):
        results = (config.parent / "results").resolve()
        if not any(results.is_relative_to(root) for root in workspace.roots):
            continue
        for checkpoint in read_checkpoints(results):
            file = next(iter(checkpoint.files.values()))
            yield KnownLora(workspace.shown(results / file.path), config.parent.name, checkpoint.step)


def last_lora(loras: Iterable[KnownLora], run: str | None) -> str:
    """The path of the last LoRA of a run; empty where it has none yet.

    Args:
        loras: from `find_loras`.
        run: its id; None for none.
    """
    return next((one.path for one in loras if one.run == run), "")


def first_values(bases: tuple[Base, ...], *, run: str | None, lora: str) -> FormValues:
    """What stands in a new form.

    Args:
        bases: from `find_bases`.
        run: whose base is chosen, if there is such a run.
        lora: path to begin with; empty for none.
    """
    base = next((one for one in bases if one.run == run), bases[0]) if run is not None else bases[0]
    fields = {"base": base.value, "model": "", "start": "", "seed": "", **base.values}
    return FormValues(fields, (AppliedLora(lora, 1.0),), "")


def values_again(preview: Preview) -> FormValues:
    """What stood in the form of an earlier preview; its start frame is named by the preview."""
    start = preview.id if preview.has_start else ""
    loras = preview.request.loras or (AppliedLora("", 1.0),)
    address = f"/preview/{preview.id}/start" if preview.has_start else ""
    return FormValues({**preview.request.fields, "start": start}, loras, address)


def _runs(workspace: Workspace) -> Iterator[Path]:
    """The config files of all runs."""
    for folder in sorted(workspace.runs.iterdir()) if workspace.runs.is_dir() else ():
        if NAME.fullmatch(folder.name) and (folder / "config.json").is_file():
            yield folder / "config.json"


def _of_run(config: Path) -> Base | None:
    try:
        written = read_written(config)
    except ConfigError:
        # The run's own page says what is wrong with it.
        return None
    run = config.parent.name
    return Base(f"{OF_RUN}{run}", run, _values(written))


def _values(written: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the form as a config has them; what it lacks, or has wrongly, is the default."""
    validation = RunConfig().validation
    default = {key: value for key, value in validation.model_dump().items() if key in FIELDS.values()}
    given = {key: value for key, value in written.items() if value is not None}
    values = {name: str((default | given)[key]) for name, key in FIELDS.items() if name != "seed"}
    size = _first_size(written.get(SIZE)) or validation.validation_resolution[0]
    prompt = written.get(PROMPT) or ""
    return values | {"width": str(size.width), "height": str(size.height), "prompt": str(prompt)}


def _first_size(value: object) -> FrameSize | None:
    first = value[0] if isinstance(value, list) and value else value
    try:
        return parse_frame_size(str(first).partition(",")[0])
    except ValueError:
        return None
