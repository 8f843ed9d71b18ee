"""The command line: builds it, parses it, and is the one place that prints an error.

Imports nothing heavy: `--help` answers without torch, and only the invoked command reads the schema.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption
from typer.exceptions import TyperException

from longcat_tune import __version__
from longcat_tune.commands import CONFIG_COMMANDS, GROUPS, PLAIN_COMMANDS
from longcat_tune.errors import UserError

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
    for name, command in PLAIN_COMMANDS.items():
        group, _, own_name = name.rpartition(" ")
        groups.get(group, app).command(own_name)(command)
    for name, group_app in groups.items():
        app.add_typer(group_app, name=name)
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
        option = typer.Option(
            *(f"--{one}/--no-{one}" if is_flag else f"--{one}" for one in spellings),
            metavar=None if is_flag else f"<{'|'.join(choices_of(field)) or what}>",
            help=f"{field.description} [default: {describe.default(field)}]",
            rich_help_panel=f"{section.capitalize()} keys",
        )
        annotation = Annotated[bool | None, option] if is_flag else Annotated[str | None, option]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(key, keyword, default=None, annotation=annotation))
    return options


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
