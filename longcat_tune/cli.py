"""The command line: parses, loads the config, hands over to runs, and is the one place that prints an error.

Imports nothing heavy: `--help` answers without torch, and only the invoked command reads the schema.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperOption
from typer.exceptions import TyperException

from longcat_tune import __version__
from longcat_tune.errors import NotAvailableYetError, UserError

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


@dataclass(frozen=True, slots=True)
class LaterCommand:
    """A command that a later stage brings to life.

    Attributes:
        help: one line on what it will do.
        what: what will bring it; ends the sentence "not available yet: ...".
        actions: its subcommands.
    """

    help: str
    what: str
    actions: tuple[str, ...] = ()


LATER_COMMANDS = {
    "lora": LaterCommand(
        "LoRA files between formats (not available yet).",
        "LoRA conversion comes with the training stage",
        ("inspect", "convert", "merge"),
    ),
    "server": LaterCommand("The web UI (not available yet).", "the web UI comes last"),
}


INTERRUPTED = 130
"""The exit code that Ctrl-C comes back as."""


class SectionedCommand(TyperCommand):
    """A command whose help lists the options by section; plain: rich needs 0.2 s more for ninety."""

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write one block per section; the command's own options come first."""
        blocks: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                panel = param.rich_help_panel if isinstance(param, TyperOption) else None
                blocks.setdefault(panel or "Options", []).append(record)
        for title, records in blocks.items():
            with formatter.section(title):
                formatter.write_dl(records)


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
        list[Path] | None, typer.Option(metavar="FILE", help="LoRA to apply; may be repeated.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Prompt to render; may be repeated.")
    ] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Start image: image-to-video.")] = None,
    verbose: Verbose = False,
    **values: str | bool | None,
) -> None:
    """Render with the validation keys, base model or LoRA, without training."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.validate import validate as run

    run(run_config, config_dir=config_dir, loras=lora or (), prompts=prompt or (), image=image)


def check(
    config: ConfigFile = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    **values: str | bool | None,
) -> None:
    """Account for every clip and plan the run, without loading weights; exit code 1 on any problem."""
    run_config, config_dir = _load(config, values, verbose=verbose)
    from longcat_tune.runs.check import check as run

    run(run_config, config_dir=config_dir, as_json=as_json)


def init(
    clips_dir: Annotated[Path, typer.Argument(metavar="CLIPS_DIR", help="Folder of clips and captions.")],
    i2v: Annotated[bool, typer.Option("--i2v", help="For image-to-video.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Make a few captioned clips in the folder first.")
    ] = False,
    flavour: Annotated[
        Literal["final", "tiny"] | None,
        typer.Option("--model_flavour", help="The model; by default tiny where there is no GPU."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write a config.json and multidatabackend.json that fit a folder of clips."""
    _set_up_log(verbose=verbose)
    from longcat_tune.runs.init import init as run

    run(clips_dir, i2v=i2v, demo=demo, flavour=flavour)


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
    from longcat_tune.runs.cache_commands import decode as run

    run(run_config, config_dir=config_dir, clip=clip, out=out)


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

GROUPS = {"cache": "What the caches hold, against what a config needs of them."}


def _set_up_log(*, verbose: bool) -> None:
    from longcat_tune import log

    log.set_up(verbose=verbose)


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


def build_app(words: Sequence[str]) -> typer.Typer:
    """All commands; only the invoked one gets an option for every config key.

    Args:
        words: the command line.
    """
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    groups = {name: typer.Typer(rich_markup_mode=None, help=help_text) for name, help_text in GROUPS.items()}
    for name, command in CONFIG_COMMANDS.items():
        group, _, own_name = name.rpartition(" ")
        invoked = name.split() == list(words[: len(name.split())])
        settings = {"token_normalize_func": lambda option: option.replace("-", "_")}
        register = groups.get(group, app).command(own_name, cls=SectionedCommand, context_settings=settings)
        register(_with_options(command, _key_options() if invoked else []))
    app.command("init")(init)
    for name, group_app in groups.items():
        app.add_typer(group_app, name=name)
    for name, later in LATER_COMMANDS.items():
        _add_later(app, name, later)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"longcat-tune {__version__}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Fine-tune LongCat-Video with LoRA on your own clips."""


def _with_options(command: Callable[..., None], options: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """The command with these options in the place of its `**values`."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]

    @wraps(command)
    def run(**values: Any) -> None:
        command(**values)

    run.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return run


def _key_options() -> list[inspect.Parameter]:
    """An option for every key of config.json; values stay text, the schema reads them."""
    from longcat_tune.config import describe
    from longcat_tune.config.foreign import CONFIG_KEYS
    from longcat_tune.config.problems import choices_of
    from longcat_tune.config.run import keys

    options = []
    for key, (section, field) in keys().items():
        what = describe.kind(field)
        is_flag = what == "true or false"
        spellings = [key, *(alias for alias, own in CONFIG_KEYS.aliases.items() if own == key)]
        notes = "; ".join(
            note for note in (f"default: {describe.default(field)}", describe.so_far(field)) if note
        )
        option = typer.Option(
            *(f"--{one}/--no-{one}" if is_flag else f"--{one}" for one in spellings),
            metavar=None if is_flag else f"<{'|'.join(choices_of(field)) or what}>",
            help=f"{field.description} [{notes}]",
            rich_help_panel=f"{section.capitalize()} keys",
        )
        annotation = Annotated[bool | None, option] if is_flag else Annotated[str | None, option]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(key, keyword, default=None, annotation=annotation))
    return options


def _add_later(app: typer.Typer, name: str, later: LaterCommand) -> None:
    """A command, or a group of them, that says what will bring it."""
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    if not later.actions:
        app.command(name, help=later.help, context_settings=anything)(_refuse(name, later.what))
        return
    group = typer.Typer(rich_markup_mode=None, help=later.help)
    for action in later.actions:
        group.command(action, context_settings=anything)(_refuse(f"{name} {action}", later.what))
    app.add_typer(group, name=name)


def _refuse(name: str, what: str) -> Callable[[], None]:
    def refuse() -> None:
        """Not available yet."""
        raise NotAvailableYetError(f"longcat-tune {name}: not available yet: {what}")

    return refuse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after the program's name; None takes them from the process.

    Returns:
        The exit code: 0 done, 1 failed with a message, 2 wrong command line or config, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    command = typer.main.get_command(build_app(words))
    try:
        # Without standalone mode a bug keeps its traceback and Ctrl-C comes back as 130.
        code = command.main(words, prog_name="longcat-tune", standalone_mode=False) or 0
        if code != INTERRUPTED:
            return code
        message = "stopped by Ctrl-C; finished files are kept, and the same command goes on"
    except UserError as error:
        message, code = str(error), error.exit_code
    except TyperException as error:
        message, code = error.format_message(), error.exit_code
    typer.echo(f"error: {message}", err=True)
    return code
