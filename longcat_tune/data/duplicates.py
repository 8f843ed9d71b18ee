"""The same content under several names: used more often than meant, or held out and trained on all the same.

Compares whole files, byte for byte by their hash; knows nothing of clips that merely look alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain

from longcat_tune.data.manifest import Manifest
from longcat_tune.data.naming import some
from longcat_tune.data.sources import SourceIndex
from longcat_tune.types import ClipRecord, Notice

Group = tuple[ClipRecord, ...]
"""Records with one content, in the order of their datasets and names."""


def duplicates(
    manifests: Sequence[Manifest],
    index_of: Callable[[str], SourceIndex],
    *,
    held_out: Collection[str] = (),
) -> tuple[Notice, ...]:
    """Tell which files are copies of each other; only files of equal size are read, and each only once.

    A file that two datasets share by its path is no copy, unless one of them is held out.

    Args:
        manifests: of all datasets that are trained on or held out.
        index_of: the memory of a dataset's files by its id; learns their hashes. Saving it is the caller's.
        held_out: ids of the datasets that are not trained on.

    Raises:
        DataError: a file was removed or changed since it was found, or cannot be read.
    """
    leaks: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    copies: dict[tuple[str, ...], list[Group]] = defaultdict(list)
    for group in _equal(manifests, index_of):
        kept = _one_per_path(record for record in group if record.dataset_id in held_out)
        trained = _one_per_path(record for record in group if record.dataset_id not in held_out)
        if kept and trained:
            leaks[kept[0].dataset_id, *_ids(trained)].append((kept[0], *trained))
        for part in (kept, trained):
            if len(part) > 1:
                copies[_ids(part)].append(part)
    return (
        *(_leak_notice(ids, groups) for ids, groups in leaks.items()),
        *(_copies_notice(ids, groups) for ids, groups in copies.items()),
    )


def _equal(manifests: Sequence[Manifest], index_of: Callable[[str], SourceIndex]) -> Iterator[Group]:
    """Records of equal content, two or more at a time."""
    by_size = defaultdict(list)
    for record in chain.from_iterable(manifest.records for manifest in manifests):
        by_size[record.stamp.size].append(record)
    indexes = {manifest.dataset_id: index_of(manifest.dataset_id) for manifest in manifests}
    by_content = defaultdict(list)
    for same_size in by_size.values():
        if len(same_size) > 1:
            for record in same_size:
                content = indexes[record.dataset_id].content(record.path, record.stamp)
                by_content[content].append(record)
    for same in by_content.values():
        if len(same) > 1:
            yield tuple(same)


def _one_per_path(records: Iterable[ClipRecord]) -> Group:
    by_path: dict[str, ClipRecord] = {}
    for record in records:
        by_path.setdefault(str(record.path), record)
    return tuple(by_path.values())


def _ids(group: Group) -> tuple[str, ...]:
    return tuple(dict.fromkeys(record.dataset_id for record in group))


def _leak_notice(ids: Sequence[str], groups: Sequence[Group]) -> Notice:
    held_out, *trained = ids
    fact = f"files that are held out and trained on too: {len(groups)} ({_named(groups, with_ids=True)})"
    remedy = f"take them out of {' and '.join(trained)}, or renders show what was learned by heart"
    return Notice(held_out, fact, remedy)


def _copies_notice(ids: Sequence[str], groups: Sequence[Group]) -> Notice:
    surplus = sum(len(group) - 1 for group in groups)
    fact = f"files that are copies of others: {surplus} ({_named(groups, with_ids=len(ids) > 1)})"
    return Notice(ids[0], fact, "keep one of each; what is meant to be used more often has repeats")


def _named(groups: Sequence[Group], *, with_ids: bool) -> str:
    """`a.mp4 = b.mp4; c.mp4 = d.mp4`."""
    named = (_named_group(group, with_ids=with_ids) for group in groups)
    return some(named, between="; ", noun="sets")


def _named_group(group: Group, *, with_ids: bool) -> str:
    names = (f"{record.dataset_id}/{record.name}" if with_ids else record.name for record in group)
    return some(names, between=" = ")
