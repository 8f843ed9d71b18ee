"""Whether the LoRAs that work in renders only can be used: judged before anything is encoded or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longcat_tune.checkpoint.lora_file import lora_file
from longcat_tune.checkpoint.lora_reader import OpenLora, open_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import CheckpointError
from longcat_tune.runs.paths import existing_path


def require_render_loras(config: RunConfig, transformer: Path | None, *, config_dir: Path) -> None:
    """Refuse a render LoRA that is not there, damaged, or made for another model.

    Args:
        config: the run.
        transformer: folder of the model; None: not known yet, then only the files are looked at.
        config_dir: where a relative path is looked for first; then in the working folder.

    Raises:
        ConfigError: one is not there.
        CheckpointError: one is damaged, of no known format, or made for another model.
    """
    validation = config.validation
    for key, given in (
        ("validation_lora", validation.validation_lora),
        ("validation_refinement_lora", validation.validation_refinement_lora),
    ):
        if given is not None:
            path = existing_path(given, key=key, config_dir=config_dir)
            with render_lora_named(key, path), open_lora(lora_file(path)) as file:
                _require_fit(file, transformer)


@contextmanager
def render_lora_named(key: str, path: Path) -> Iterator[None]:
    """Say which key and file is at fault when the block finds one, and what to do.

    Args:
        key: of the config that names the file.
        path: of the file.

    Raises:
        CheckpointError: in place of one without them.
    """
    try:
        yield
    except CheckpointError as error:
        remedy = f"give a LoRA that was made for the model of this config, or remove {key}"
        raise CheckpointError(f"{key} ({path}): {error}; {remedy}") from error


def _require_fit(file: OpenLora, transformer: Path | None) -> None:
    if transformer is None:
        return
    # Imported here: peft takes seconds, and most runs have no such LoRA.
    from longcat_tune.model.lora import check_modules
    from longcat_tune.model.weights import empty_transformer

    shapes = {}
    for module, update in file.updates():
        # One layer at a time: together they may be gigabytes.
        shapes[f"{module}.lora_A.weight"] = update.down.to("meta")
        shapes[f"{module}.lora_B.weight"] = update.up.to("meta")
        if update.magnitude is not None:
            shapes[f"{module}.lora_magnitude_vector"] = update.magnitude.to("meta")
    check_modules(empty_transformer(transformer), shapes)
