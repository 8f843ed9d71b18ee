"""The commands `cache status`, `verify` and `prune`: what caches hold, against what a run needs.

All of them plan the run as `check` does, for the names of its files follow from its clips and keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat_tune.config.run import RunConfig
from longcat_tune.data.cache import (
    Job,
    LatentJob,
    TextJob,
    latents_sizes,
    text_bytes,
    unfinished,
)
from longcat_tune.data.cache_files import FolderContents, latents_fault, remove, text_fault
from longcat_tune.errors import DataError
from longcat_tune.log import output, progress
from longcat_tune.runs.cache_jobs import CacheJobs, wanted_by
from longcat_tune.runs.problems import show_json


@dataclass(frozen=True, slots=True)
class FolderUse:
    """One cache folder, and what this config needs of it.

    Attributes:
        contents: what lies there.
        needed: names of the files that this config needs.
        missing: names of those that are not there, or not complete.
    """

    contents: FolderContents
    needed: frozenset[str]
    missing: frozenset[str]

    @property
    def unneeded(self) -> dict[str, int]:
        """Bytes of the files that this config does not need, unfinished ones of killed processes included."""
        others = {name: size for name, size in self.contents.sizes.items() if name not in self.needed}
        return others | self.contents.leftovers

    def report(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "folder": str(self.contents.folder),
            "files": len(self.contents.sizes),
            "bytes": sum(self.contents.sizes.values()),
            "needed": len(self.needed),
            "have": len(self.needed) - len(self.missing),
            "missing": len(self.missing),
            "not_needed": len(self.unneeded),
            "not_needed_bytes": sum(self.unneeded.values()),
        }


@dataclass(frozen=True, slots=True)
class Damage:
    """A cached file that is not what it should be, and why."""

    path: Path
    reason: str


def status(config: RunConfig, *, config_dir: Path, as_json: bool) -> None:
    """Show per folder what is there, what this config needs and what it does not.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        as_json: for machines; the same content.

    Raises:
        UserError: the plan cannot be made, or a folder cannot be read.
    """
    jobs, _ = wanted_by(config, config_dir)
    folders = [use.report() for use in _uses(jobs)]
    problems = len(jobs.plan.problems)
    if as_json:
        show_json({"folders": folders, "problems": problems})
        return
    rows = [("files", "size", "needed", "have", "missing", "not needed", "folder")]
    for one in folders:
        counts = [f"{one[key]:,}" for key in ("needed", "have", "missing", "not_needed")]
        rows.append((f"{one['files']:,}", _size(one["bytes"]), *counts, one["folder"]))
    missing = sum(one["missing"] for one in folders)
    says = [f"missing in all: {missing:,}" + ("; train encodes them first" if missing else "")]
    if problems:
        says.append(
            f"problems of the datasets: {problems:,}; `longcat-tune check` lists them. What is cached of "
            "clips that cannot be used counts as not needed"
        )
    output.print("\n".join([*_aligned(rows), *says]), markup=False, highlight=False)


def verify(config: RunConfig, *, config_dir: Path, as_json: bool, remove_damaged: bool) -> None:
    """Read every cached file that this config needs, and tell which are damaged.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        as_json: for machines; the same content.
        remove_damaged: delete them, so that the next run encodes them again.

    Raises:
        DataError: at least one is damaged, and they are not to be removed.
        UserError: the plan cannot be made, or a folder cannot be read or written to.
    """
    jobs, _ = wanted_by(config, config_dir)
    texts = _present(jobs.texts)
    latents = _present(jobs.latents)
    with progress("Reading cached files", len(texts) + len(latents)) as bar:
        damaged = []
        for damage in _examined(jobs, latents, texts):
            bar.advance()
            if damage is not None:
                damaged.append(damage)
    if remove_damaged:
        for damage in damaged:
            remove(damage.path)
    wanted = len({job.path for job in jobs.texts} | {job.path for job in jobs.latents})
    read = len(texts) + len(latents)
    if as_json:
        listed = [{"path": str(damage.path), "reason": damage.reason} for damage in damaged]
        show_json({"read": read, "missing": wanted - read, "damaged": listed, "removed": remove_damaged})
    else:
        lines = [f"damaged {damage.path} {damage.reason}" for damage in damaged]
        lines.append(f"{read} files read, {wanted - read} not encoded yet, {len(damaged)} damaged")
        output.print("\n".join(lines), markup=False, highlight=False)
    if damaged and not remove_damaged:
        raise DataError(
            f"{len(damaged)} of {read} cached files are damaged; `longcat-tune cache verify --remove` "
            "deletes them, and the next run encodes them again"
        )


def prune(config: RunConfig, *, config_dir: Path, yes: bool) -> None:
    """Delete the cached files that this config does not need.

    Args:
        config: what was asked.
        config_dir: where relative paths of the config start.
        yes: really delete them; otherwise they are only counted.

    Raises:
        DataError: a file of a dataset cannot be used, so that its cached files would count as not needed.
        UserError: the plan cannot be made, or a folder cannot be read or written to.
    """
    jobs, _ = wanted_by(config, config_dir)
    jobs.plan.require_sound()
    uses = [use for use in _uses(jobs) if use.unneeded]
    for use in uses:
        size = _size(sum(use.unneeded.values()))
        line = f"{use.contents.folder}: {len(use.unneeded):,} files, {size}"
        output.print(line, markup=False, highlight=False)
        if yes:
            for name in use.unneeded:
                remove(use.contents.folder / name)
    count = sum(len(use.unneeded) for use in uses)
    if not count:
        says = "this config needs every file of its caches"
    elif yes:
        says = f"{count:,} files deleted"
    else:
        says = (
            f"this config does not need these {count:,} files; nothing is deleted without --yes. Other "
            "configs that share the folders may need them, and would encode them again"
        )
    output.print(says, markup=False, highlight=False)


def _uses(jobs: CacheJobs) -> Iterator[FolderUse]:
    """The run's cache folders in order."""
    incomplete = [
        *(job.path for job in unfinished(jobs.latents, least_bytes=latents_sizes(jobs.channels))),
        *(job.path for job in unfinished(jobs.texts, least_bytes=text_bytes)),
    ]
    paths = [*(job.path for job in jobs.latents), *(job.path for job in jobs.texts)]
    needed, missing = _names_by_folder(paths), _names_by_folder(incomplete)
    none: frozenset[str] = frozenset()
    # A folder may be written in two ways; taken for two, each would not need what the other needs.
    spelled = {
        folder.resolve(): folder for folder in sorted({path.parent for path in paths} | jobs.folders())
    }
    for real, folder in spelled.items():
        yield FolderUse(FolderContents.of(folder), needed.get(real, none), missing.get(real, none))


def _names_by_folder(paths: Sequence[Path]) -> dict[Path, frozenset[str]]:
    names: dict[Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    real: dict[Path, frozenset[str]] = {}
    for folder, those in names.items():
        real[folder.resolve()] = real.get(folder.resolve(), frozenset()) | those
    return real


def _present(jobs: Sequence[Job]) -> list[Job]:
    """One job per file that is there, whole or not."""
    return [job for path, job in {job.path: job for job in jobs}.items() if path.exists()]


def _examined(
    jobs: CacheJobs, latents: Sequence[LatentJob], texts: Sequence[TextJob]
) -> Iterator[Damage | None]:
    """What is wrong with each file in turn; None when nothing is."""
    for text in texts:
        reason = text_fault(text.path, width=jobs.text_width)
        yield None if reason is None else Damage(text.path, reason)
    for latent in latents:
        reason = latents_fault(latent.path, latent.bucket, channels=jobs.channels)
        yield None if reason is None else Damage(latent.path, reason)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A table whose last column is never cut, however wide the terminal: a path must stay in one piece."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]


def _size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
