"""The command `check`: what a run would do with every file, and every problem, before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from longcat_tune.config.run import RunConfig
from longcat_tune.log import output
from longcat_tune.runs.evaluate import evaluation_lines
from longcat_tune.runs.machine import THIS_MACHINE, OtherMachine, planned_machine, this_machine
from longcat_tune.runs.memory_report import memory_lines, memory_report, memory_table, terms_table
from longcat_tune.runs.preflight import Preflight, preflight
from longcat_tune.runs.problems import (
    config_problems_shown,
    counted,
    problem_lines,
    raise_problems,
    show_json,
)
from longcat_tune.runs.report import clip_rows, plan_report
from longcat_tune.runs.report_text import (
    bucket_table,
    clip_lines,
    dataset_lines,
    notice_lines,
    render_lines,
    step_lines,
)

UNLIMITED = 1000
"""Columns; more than any table needs."""


def check(
    config: RunConfig,
    *,
    config_dir: Path,
    as_json: bool,
    clips: bool = False,
    other: OtherMachine = THIS_MACHINE,
) -> None:
    """Show the plan of a run, and all that is wrong with it.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        as_json: for machines; the same content as one object and nothing else, also when there are problems.
        clips: list every clip, too.
        other: what is known of another machine that the run is for.

    Raises:
        DataError: there is at least one problem.
        ConfigError: the data file is wrong; then there is no plan. Or a size of the other machine is wrong.
    """
    with config_problems_shown(as_json=as_json):
        machine = None if other == THIS_MACHINE else planned_machine(this_machine(), other)
        flight = preflight(config, config_dir=config_dir, trains=True, machine=machine)
    report = plan_report(flight.plan, flight.requests, flight.checkpoint, config.training)
    report["memory"] = None if flight.memory is None else memory_report(flight.memory)
    if clips:
        report["clips"] = clip_rows(flight.plan)
    if as_json:
        show_json(report | {"problems": [problem.as_json() for problem in flight.problems]})
    else:
        _show(flight, report, config)
    raise_problems(flight.problems, told=True)
    if not as_json:
        output.print("No problems.")


def _show(flight: Preflight, report: dict[str, Any], config: RunConfig) -> None:
    _show_table(bucket_table(report))
    _show_lines(
        [
            *clip_lines(report.get("clips", ())),
            *dataset_lines(report),
            *step_lines(report),
            *render_lines(flight.requests, framerate=config.data.framerate),
            *evaluation_lines(flight.plan, config),
            *notice_lines(report),
        ]
    )
    if report["memory"] is not None:
        _show_table(memory_table(report["memory"]))
        _show_table(terms_table(report["memory"]))
        _show_lines(memory_lines(report["memory"]))
    if flight.problems:
        counted_problems = f"{counted(len(flight.problems))}:"
        _show_lines([counted_problems, *(f"  {line}" for line in problem_lines(flight.problems))])
    elif flight.checkpoint is None:
        _show_lines(["the weights were not looked for: they come from the hub, and train downloads them"])


def _show_table(table: Table) -> None:
    if not output.is_terminal:
        # A file or a pipe is as wide as it must be; squeezed columns are hard to read and to search.
        table.width = output.measure(table, options=output.options.update(width=UNLIMITED)).maximum
    output.print(table)


def _show_lines(lines: Sequence[str]) -> None:
    output.print("\n".join(lines), markup=False, highlight=False)
