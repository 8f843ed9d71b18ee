"""The command `validate`: the same renders as inside a run, of the base model or of LoRA files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longcat_tune.checkpoint.lora_file import LORA_FILE, LoraWeights, lora_file, read_lora
from longcat_tune.config.run import RunConfig
from longcat_tune.errors import CheckpointError, ConfigError
from longcat_tune.model.dit import LongCatVideoTransformer
from longcat_tune.model.lora import load_lora, set_lora_scale
from longcat_tune.runs.build import CheckpointFolders, find_checkpoint, pick_device, uses_autocast
from longcat_tune.runs.cache import fill_caches
from longcat_tune.runs.gallery import write_gallery
from longcat_tune.runs.machine import this_machine
from longcat_tune.runs.memory_plan import resolve
from longcat_tune.runs.memory_sizes import run_sizes
from longcat_tune.runs.plan import RunPlan, plan_renders
from longcat_tune.runs.render import weights_identity
from longcat_tune.runs.render_build import build_renderer
from longcat_tune.runs.render_lora_check import require_render_loras
from longcat_tune.runs.render_watch import RenderWatch
from longcat_tune.runs.report_text import render_lines
from longcat_tune.runs.requests import command_requests, plan_requests
from longcat_tune.runs.transformer import base_weight, build_base
from longcat_tune.sampling.requests import RenderRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Start:
    """What the command line gives all prompts to start from, and how far they go."""

    image: Path | None
    video: Path | None
    segments: int

    @property
    def is_given(self) -> bool:
        """Whether there is anything to apply to prompts."""
        return self.image is not None or self.video is not None or self.segments > 1

    def require_none(self) -> None:
        """Refuse to leave out what was given, where prompts come with starts of their own.

        Raises:
            ConfigError: anything was given.
        """
        segments = self.segments if self.segments > 1 else None
        for option, value in (("--image", self.image), ("--video", self.video), ("--segments", segments)):
            if value is not None:
                raise ConfigError(
                    f"{option} ({value}) needs --prompt or validation_prompt: prompts of libraries and "
                    "datasets have their own; give --prompt TEXT, or leave it out"
                )

    def require_sound(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: a file is not there, or both are given.
        """
        if self.image is not None and self.video is not None:
            msg = f"--image ({self.image}) and --video ({self.video}) cannot both be the start; keep one"
            raise ConfigError(msg)
        for option, path, what in (
            ("--image", self.image, "start image"),
            ("--video", self.video, "clip to continue"),
        ):
            if path is not None and not path.is_file():
                raise ConfigError(f"{option} ({path}) does not exist; give the path of a {what}")


@dataclass(frozen=True, slots=True)
class _Adapter:
    """A LoRA to render with."""

    path: Path
    strength: float
    lora: LoraWeights

    def add_to(self, model: LongCatVideoTransformer, name: str, *, autocast: bool) -> None:
        """Put it on the model beside those that are there."""
        try:
            load_lora(
                model,
                self.lora.weights,
                self.lora.alphas,
                adapter=name,
                autocast=autocast,
                base_weight=base_weight,
            )
        except CheckpointError as error:
            msg = f"--lora ({self.path}): {error}; give a LoRA that was trained on the model of this config"
            raise CheckpointError(msg) from error
        set_lora_scale(model, self.strength, adapter=name)

    def label(self, output_dir: Path) -> str:
        """Name it for a folder: by its place in the run's, else by its own name and a hash of its place."""
        file = lora_file(self.path).resolve()
        if file.is_relative_to(output_dir.resolve()):
            inside = file.relative_to(output_dir.resolve())
            # The usual name says nothing that the checkpoint's folder does not.
            usual = inside.name == LORA_FILE and inside.parent.parts
            name = "-".join((inside.parent if usual else inside.with_suffix("")).parts)
        else:
            # Every run's files have the same names.
            digest = hashlib.blake2b(str(file).encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
            name = f"{file.stem}-{digest}"
        return name if self.strength == 1 else f"{name}@{self.strength:g}"


def validate(
    config: RunConfig,
    *,
    config_dir: Path,
    loras: Sequence[tuple[Path, float]],
    prompts: Sequence[str],
    image: Path | None,
    video: Path | None = None,
    segments: int = 1,
) -> None:
    """Render with the validation keys.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        loras: files to apply together and their strengths, 1 as trained; none renders the base model.
        prompts: instead of the config's.
        image: start image of all prompts.
        video: clip that all prompts continue; not together with an image.
        segments: how often each prompt goes on from its own last frames, the first one included.

    Raises:
        ConfigError: there is nothing to render, or the start image or clip does not exist.
        UserError: a file, the weights or the device will not do.
        DeviceError: some of the renders could not be made; the others were.
    """
    start = _Start(image, video, segments)
    start.require_sound()
    adapters = [_Adapter(path, strength, read_lora(path)) for path, strength in loras]
    plan, requests = _plan(config, config_dir=config_dir, prompts=prompts, start=start)
    for line in render_lines(requests, framerate=config.data.framerate):
        logger.info("%s", line)
    device = pick_device()
    # Once before anything is downloaded.
    require_render_loras(config, None, config_dir=config_dir)
    checkpoint = find_checkpoint(config.model)
    require_render_loras(config, checkpoint.transformer, config_dir=config_dir)
    config = _placed(config, plan, requests, checkpoint, adapters, config_dir=config_dir)
    cached = fill_caches(config, plan, checkpoint, requests, device=device)
    model = build_base(config, checkpoint.transformer, device=device, trains=False).model
    for number, adapter in enumerate(adapters, start=1):
        adapter.add_to(model, f"lora-{number}", autocast=uses_autocast(config.model))
    folder = config.output.output_dir / "validation" / _folder_name(adapters, config.output.output_dir)
    renderer = build_renderer(config, checkpoint, model, config_dir=config_dir, device=device)
    watch = RenderWatch(lambda name, error: logger.warning("%s failed: %s", name, error))
    weights = _identity(checkpoint, adapters)
    record = renderer.render(cached.requests, folder=folder, weights=weights, watch=watch)
    page = write_gallery(folder.parent, folder)
    for path in (*record.paths(folder), page):
        logger.info("%s", path)
    record.require_complete()


def _placed(
    config: RunConfig,
    plan: RunPlan,
    requests: Sequence[RenderRequest],
    checkpoint: CheckpointFolders,
    adapters: Sequence[_Adapter],
    *,
    config_dir: Path,
) -> RunConfig:
    """The config with the memory plan's choice, if it asks for one; what does not fit is refused."""
    sizes = run_sizes(config, plan, requests, checkpoint, None, config_dir=config_dir)
    parameters = sum(weight.numel() for adapter in adapters for weight in adapter.lora.weights.values())
    loaded = replace(sizes.adapter, parameters=parameters)
    return resolve(config, replace(sizes, adapter=loaded), this_machine())


def _plan(
    config: RunConfig, *, config_dir: Path, prompts: Sequence[str], start: _Start
) -> tuple[RunPlan, tuple[RenderRequest, ...]]:
    validation = config.validation
    if start.is_given and not prompts and validation.validation_prompt is not None:
        prompts = [validation.validation_prompt]
    if prompts:
        requests = command_requests(
            config, prompts=prompts, image=start.image, video=start.video, segments=start.segments
        )
        return plan_renders(config, config_dir=config_dir), requests
    start.require_none()
    source_id = validation.eval_dataset_id if validation.validation_using_datasets else None
    plan = plan_renders(config, config_dir=config_dir, source_id=source_id)
    plan.require_sound()
    requests = plan_requests(config, plan.render_source, config_dir=config_dir)
    if not requests:
        msg = (
            "nothing to render: give --prompt TEXT, or set validation_prompt, validation_prompt_library or "
            "user_prompt_library, or set validation_using_datasets with eval_dataset_id"
        )
        raise ConfigError(msg)
    return plan, requests


def _folder_name(adapters: Sequence[_Adapter], output_dir: Path) -> str:
    return "+".join(adapter.label(output_dir) for adapter in adapters) or "base"


def _identity(checkpoint: CheckpointFolders, adapters: Sequence[_Adapter]) -> str:
    named = {
        f"{number}.{name}": weight
        for number, adapter in enumerate(adapters)
        for name, weight in adapter.lora.weights.items()
    }
    scales = [(sorted(adapter.lora.alphas.items()), adapter.strength) for adapter in adapters]
    return weights_identity(f"{checkpoint.transformer} {scales}", named)
