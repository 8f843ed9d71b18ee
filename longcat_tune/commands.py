"""The commands as functions: what each takes on the command line, and the run that it hands over to.

Imports nothing heavy: each command imports its run when it is invoked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from longcat_tune.config.run import RunConfig

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The config.json; without it, all keys have their defaults."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log details, and other libraries' messages.")]


def train(config: ConfigFile = None, verbose: Verbose = False, **values: str | bool | None) -> None:
    """Cache what is missing, train, checkpoint and render; goes on where it was stopped."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.train import train as run

    run(run_config, config_dir=config_dir)


def cache_latents(config: ConfigFile = None, verbose: Verbose = False, **values: str | bool | None) -> None:
    """Encode clips, start images and captions into the caches; goes on where it was stopped."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.cache import cache_latents as run

    run(run_config, config_dir=config_dir)


def validate(
    config: ConfigFile = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="LoRA to apply; FILE:0.8 at that strength; may be repeated."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Prompt to render; may be repeated.")
    ] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Start image: image-to-video.")] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Clip to continue from its last frames.")
    ] = None,
    segments: Annotated[
        int, typer.Option(min=1, metavar="N", help="Go on N - 1 times from the render's own last frames.")
    ] = 1,
    verbose: Verbose = False,
    **values: str | bool | None,
) -> None:
    """Render with the validation keys, base model or LoRA, without training."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.lora_commands import strength_given
    from longcat_tune.runs.validate import validate as run

    loras = [strength_given(one) for one in lora or ()]
    run(
        run_config,
        config_dir=config_dir,
        loras=loras,
        prompts=prompt or (),
        image=image,
        video=video,
        segments=segments,
    )


def check(
    config: ConfigFile = None,
    as_json: AsJson = False,
    clips: Annotated[bool, typer.Option("--clips", help="List every clip, too.")] = False,
    device_memory: Annotated[
        str | None,
        typer.Option("--device-memory", metavar="SIZE", help="Plan for a card of this memory, as 24GiB."),
    ] = None,
    host_memory: Annotated[
        str | None, typer.Option("--host-memory", metavar="SIZE", help="Plan for this much main memory.")
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            "--device-name", metavar="NAME", help="Card to tell seconds per step of, as 'RTX 4090'."
        ),
    ] = None,
    verbose: Verbose = False,
    **values: str | bool | None,
) -> None:
    """Account for every clip and plan the run, without loading weights; exit code 1 on any problem."""
    from longcat_tune.runs.problems import config_problems_shown

    with config_problems_shown(as_json=as_json):
        run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.check import check as run
    from longcat_tune.runs.machine import OtherMachine

    other = OtherMachine(device_memory, host_memory, device_name)
    run(run_config, config_dir=config_dir, as_json=as_json, clips=clips, other=other)


def init(
    clips_dir: Annotated[Path, typer.Argument(metavar="CLIPS_DIR", help="Folder of clips and captions.")],
    i2v: Annotated[bool, typer.Option("--i2v", help="For image-to-video.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Make a few captioned clips in the folder first.")
    ] = False,
    regularisation_dir: Annotated[
        Path | None,
        typer.Option(
            "--regularisation_dir",
            metavar="DIR",
            help="Folder of clips of what the model knows and shall not forget.",
        ),
    ] = None,
    flavour: Annotated[
        Literal["final", "tiny"] | None,
        typer.Option("--model_flavour", help="The model; by default tiny where there is no GPU."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write a config.json and multidatabackend.json that fit a folder of clips."""
    _set_up_log(verbose=verbose)
    from longcat_tune.runs.init import init as run

    run(clips_dir, i2v=i2v, demo=demo, regularisation_dir=regularisation_dir, flavour=flavour)


def thumbnails(
    clips_dir: Annotated[Path, typer.Argument(metavar="CLIPS_DIR", help="Folder of clips, images or both.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the thumbnails.")],
    size: Annotated[int, typer.Option(min=16, max=2048, help="Pixels of the longer edge.")] = 256,
    apart: Annotated[
        bool, typer.Option("--apart", help="Numbered pictures are images of their own, not one clip.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Make a small picture of every clip and image, and an index.json; goes on where it was stopped."""
    _set_up_log(verbose=verbose)
    from longcat_tune.runs.thumbnails import thumbnails as run

    run(clips_dir, out=out, size=size, apart=apart)


def cache_status(
    config: ConfigFile = None, as_json: AsJson = False, verbose: Verbose = False, **values: str | bool | None
) -> None:
    """Count what is there, needed, missing and not needed."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.cache_commands import status as run

    run(run_config, config_dir=config_dir, as_json=as_json)


def cache_verify(
    config: ConfigFile = None,
    as_json: AsJson = False,
    remove_damaged: Annotated[
        bool, typer.Option("--remove", help="Delete damaged files; the next run encodes them again.")
    ] = False,
    verbose: Verbose = False,
    **values: str | bool | None,
) -> None:
    """Read what this config needs; exit code 1 when any is damaged."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.cache_commands import verify as run

    run(run_config, config_dir=config_dir, as_json=as_json, remove_damaged=remove_damaged)


def cache_prune(
    config: ConfigFile = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Really delete; without it the files are only counted.")
    ] = False,
    verbose: Verbose = False,
    **values: str | bool | None,
) -> None:
    """Delete what this config does not need, after --yes."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.cache_commands import prune as run

    run(run_config, config_dir=config_dir, yes=yes)


def cache_decode(
    clip: Annotated[
        str | None,
        typer.Argument(
            metavar="CLIP", help="Id of a clip, or a file of latents; without it, ids are listed."
        ),
    ] = None,
    config: ConfigFile = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.mp4", help="The video; by default output_dir/decoded/NAME.mp4."),
    ] = None,
    verbose: Verbose = False,
    **values: str | bool | None,
) -> None:
    """Show a cached clip as an mp4."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.cache_decode import decode as run

    run(run_config, config_dir=config_dir, clip=clip, out=out)


def lora_inspect(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="LoRA files, or checkpoint folders.")
    ],
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show what LoRA files hold: format, layers, ranks, strength, and which programs read them."""
    _set_up_log(verbose=verbose)
    from longcat_tune.runs.lora_commands import inspect as run

    run(files, as_json=as_json)


def lora_convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="LoRA file of any known format.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="File to write; must not exist.")],
    form: Annotated[
        Literal["peft", "official", "comfyui", "diffsynth"], typer.Option("--to", help="Format to write.")
    ],
    pad_to: Annotated[
        int | None,
        typer.Option(help="official: zero-pad to this rank; 128 is what Meituan's loader takes by default."),
    ] = None,
    separate: Annotated[
        bool,
        typer.Option("--separate", help="official: keep q, k and v apart where the LoRA has them so."),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Write a LoRA in another format; the result is read back and compared."""
    _set_up_log(verbose=verbose)
    from longcat_tune.runs.lora_commands import convert as run

    run(source, target, form, pad_to=pad_to, separate=separate)


def lora_merge(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Checkpoint or transformer folder, hub id, final or tiny.")
    ],
    loras: Annotated[
        list[str], typer.Argument(metavar="LORA...", help="Files; FILE:0.8 merges at that strength.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder to write; must not exist.")],
    verbose: Verbose = False,
) -> None:
    """Write a transformer folder with LoRAs merged into its weights, shard by shard."""
    _set_up_log(verbose=verbose)
    from longcat_tune.runs.lora_commands import strength_given
    from longcat_tune.runs.lora_merge import merge as run

    run(base, [strength_given(one) for one in loras], out)


def server(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; other than this machine needs a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Port to listen on; 0 takes a free one.")
    ] = 8001,
    workspace: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Folder it may see; may be repeated, the first is written to. [longcat-tune-workspace]",
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    verbose: Verbose = False,
) -> None:
    """The web UI: datasets, runs, renders and previews in the browser."""
    _set_up_log(verbose=verbose)
    from longcat_tune.server.serve import serve as run

    run(workspace or (), host=host, port=port, open_browser=open_browser)


CONFIG_COMMANDS: Mapping[str, Callable[..., None]] = {
    "train": train,
    "cache-latents": cache_latents,
    "validate": validate,
    "check": check,
    "cache status": cache_status,
    "cache verify": cache_verify,
    "cache prune": cache_prune,
    "cache decode": cache_decode,
}
"""What takes a config; a command of two words is one of a group."""

PLAIN_COMMANDS: Mapping[str, Callable[..., None]] = {
    "init": init,
    "thumbnails": thumbnails,
    "lora inspect": lora_inspect,
    "lora convert": lora_convert,
    "lora merge": lora_merge,
    "server": server,
}

GROUPS = {
    "cache": "What the caches hold, against what a config needs of them.",
    "lora": "LoRA files: what they hold, other formats, merging.",
}


def _set_up_log(*, verbose: bool) -> None:
    from longcat_tune import log

    # Launchers of several processes number them so; they all plan alike, and one tells of it.
    log.set_up(verbose=verbose, quiet=os.environ.get("RANK", "0") != "0")


def _load(
    config: Path | None, values: Mapping[str, str | bool | None], *, verbose: bool
) -> tuple[RunConfig, Path]:
    """The run's config, and the folder its relative paths may start from."""
    _set_up_log(verbose=verbose)
    from longcat_tune.config.load import load_run_config

    overrides = {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in values.items()
        if value is not None
    }
    return load_run_config(config, overrides), config.parent if config is not None else Path()
