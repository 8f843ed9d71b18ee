"""Writes docs/config.md and the tables of docs/dataloader.md from the schema; run it after any change there.

python scripts/make_config_docs.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from longcat_tune.config import describe
from longcat_tune.config.datasets import DatasetEntry
from longcat_tune.config.foreign import CONFIG_KEYS, DATASET_KEYS, ForeignKeys
from longcat_tune.config.run import sections
from longcat_tune.config.schema import section_of

DOCS = Path(__file__).parent.parent / "docs"
MARKED = re.compile(r"(<!-- keys: (.*?) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
"""A table of the named keys; what stands between the two lines is written here."""

HEAD = """\
# Configuration

*Written by `scripts/make_config_docs.py` from the schema; do not edit.*

Two files describe a run: `config.json` says how to train, and the file that its `data_backend_config`
names lists the datasets. Both are JSON; comments (`//`, `/* */`) and trailing commas are welcome. `null` and
an empty text mean the default. Keys may begin with `--` and may have dashes for underscores.

Every key of `config.json` is also an option of `train`, `cache-latents`, `validate` and `check`, and wins
over the file: `--lora_rank 16`, `--lora-rank=16`, `--gradient_checkpointing`, `--no-gradient_checkpointing`.
Lists are written with commas or as JSON.

An unknown key or value is an error that names the nearest known one.

## Paths

`data_backend_config`, `init_lora`, `user_prompt_library`, `validation_lora`, `validation_refinement_lora` and
`instance_data_dir` are looked for beside the file that names them, then in the working folder;
`caption_table.path` in `instance_data_dir` before both; `image` and `video` of a prompt library beside
it, then in the working folder. `output_dir`, `cache_dir`, `cache_dir_vae` and
`group_offload_to_disk_path` are relative to the working folder.
"""

FOREIGN_HEAD = """\
## Keys of SimpleTuner

Some have another name here. Some would have changed the run, and are an error when set to do so:
"""


def page() -> str:
    """The whole of docs/config.md."""
    parts = [HEAD, "## config.json\n"]
    for name, model in sections().items():
        parts += [f"### {name.capitalize()}\n", table(model.model_fields)]
    parts += [
        "## The data file\n",
        "A list of entries; [dataloader.md](dataloader.md) explains them by example.\n",
        table(DatasetEntry.model_fields),
    ]
    for key, field in DatasetEntry.model_fields.items():
        if (section := section_of(field)) is not None:
            parts += [f"### Inside `{key}`\n", table(section.model_fields)]
    parts += [
        "## Keys of SimpleTuner\n",
        foreign(CONFIG_KEYS, "config.json"),
        foreign(DATASET_KEYS, "the data file"),
    ]
    return "\n".join(parts)


def filled(text: str) -> str:
    """docs/dataloader.md with fresh tables."""
    fields = dict(entry_fields())

    def fresh(mark: re.Match[str]) -> str:
        return f"{mark[1]}\n{table({key: fields[key] for key in mark[2].split()})}\n{mark[3]}"

    return MARKED.sub(fresh, text)


def entry_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every key of an entry; those inside an object with its name and a dot before."""
    for key, field in DatasetEntry.model_fields.items():
        yield key, field
        if (section := section_of(field)) is not None:
            yield from ((f"{key}.{inner}", one) for inner, one in section.model_fields.items())


def table(fields: Mapping[str, FieldInfo]) -> str:
    """One row per key."""
    rows = ["| key | default | accepts | meaning |", "| --- | --- | --- | --- |"]
    for key, field in fields.items():
        meaning = re.sub(r"<(?=\w)", r"\<", str(field.description))  # <id> would be taken for HTML
        cells = (f"`{key}`", f"`{describe.default(field)}`", describe.accepts(field), meaning)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def foreign(keys: ForeignKeys, file: str) -> str:
    """Other spellings, and what to do about keys that do not exist here."""
    rows = [f"In {file}:\n", "| key | here |", "| --- | --- |"]
    rows += [f"| `{alias}` | the same as `{key}` |" for alias, key in sorted(keys.aliases.items())]
    rows += [f"| `{key}` | {one.instead} |" for key, one in sorted(keys.consequences.items())]
    rest = len(keys.names()) - len(keys.consequences)
    rows.append(f"\n{rest} more of its keys have no meaning here; one warning lists those that are set.\n")
    return "\n".join(rows)


if __name__ == "__main__":
    (DOCS / "config.md").write_text(page(), encoding="utf-8")
    dataloader = DOCS / "dataloader.md"
    dataloader.write_text(filled(dataloader.read_text(encoding="utf-8")), encoding="utf-8")
