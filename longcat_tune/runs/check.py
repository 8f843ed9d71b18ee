"""The command `check`: what a run would do with every file, and every problem, before weights are loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from longcat_tune.config.run import RunConfig, require_training_length
from longcat_tune.log import output
from longcat_tune.runs.build import find_local_checkpoint, require_transformer
from longcat_tune.runs.plan import describe, make_plan
from longcat_tune.runs.report import accounting_lines, bucket_table, plan_report, render_lines
from longcat_tune.runs.requests import plan_requests

logger = logging.getLogger(__name__)


def check(config: RunConfig, *, config_dir: Path, as_json: bool) -> None:
    """Show the plan of a run.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        as_json: for machines; the same content.

    Raises:
        DataError: at least one file cannot be used.
        ConfigError: the length of the training is not given.
        UserError: the plan cannot be made at all, or does not fit the model.
    """
    plan = make_plan(config, config_dir=config_dir)
    requests = plan_requests(config.validation, plan.render_source)
    checkpoint = find_local_checkpoint(config.model)
    report = plan_report(plan, requests, checkpoint)
    if as_json:
        output.print(json.dumps(report, indent=2, ensure_ascii=False), markup=False, highlight=False)
    else:
        output.print(bucket_table(report))
        lines = [
            *accounting_lines(report),
            *render_lines(requests, framerate=config.data.framerate),
            *(f"refused {describe(refusal)}" for refusal in plan.refusals),
        ]
        output.print("\n".join(lines), markup=False, highlight=False)
    plan.require_sound(told=True)
    require_training_length(config)
    if checkpoint is None:
        logger.info("the weights were not looked for: they come from the hub, and train downloads them")
    else:
        require_transformer(config.lora, checkpoint.transformer)
