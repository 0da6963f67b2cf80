"""The data set check: every file of every split, or a few dozen of them before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mmengine.config import Config

from volo_seg.datasets.inspection.findings import Finding, duplicates, findings_of
from volo_seg.datasets.inspection.observation import Look, Observation, inspect_pair
from volo_seg.datasets.inspection.processes import inspect_pairs
from volo_seg.datasets.inspection.splits import Split, read_splits, split_names
from volo_seg.errors import UserError

Watch = Callable[[Iterable[Observation], int, str], Iterable[Observation]]
QUICK_COUNT = 32


@dataclass
class Checked:
    """A split, what its files hold, and what is wrong with it."""

    split: Split
    observations: list[Observation]
    findings: list[Finding] = field(default_factory=list)


def check_splits(
    config: Config, *, processes: int, fast: bool, watch: Watch | None = None
) -> tuple[list[Checked], list[Finding]]:
    """Read all files of all splits of ``config``; also return what keeps a split from being read at all.

    Args:
        config: Its data loaders name the splits.
        processes: How many read files at a time.
        fast: Of images, read only the header and the hash.
        watch: Wraps the observations as they come, with their number and the split's name: a progress bar.
    """
    checked: list[Checked] = []
    broken: list[Finding] = []
    for name in split_names(config):
        try:
            splits = list(read_splits(config, name))
        except UserError as error:
            broken.append(Finding(name, 'config', str(error)))
            continue
        for split in splits:
            look = Look(decode=not fast, table=split.table)
            seen = _watched(split, inspect_pairs(split.pairing.pairs, look, processes=processes), watch)
            checked.append(Checked(split, seen, findings_of(split, seen)))
    train = [seen for one in checked if one.split.name == 'train' for seen in one.observations]
    for one in checked:
        if one.split.name != 'train':
            one.findings += duplicates(train, one.observations, one.split.name)
    return checked, broken


def quick_check(config: Config, *, splits: Sequence[str] = ('train', 'val'), count: int = QUICK_COUNT) -> None:
    """Look at ``count`` evenly spread pairs of each split, for a second or two.

    Raises:
        UserError: The first finding with which training would fail or learn something wrong.
    """
    for split in (split for name in splits for split in read_splits(config, name)):
        pairs = evenly(split.pairing.pairs, count)
        look = Look(digest=False, table=split.table)
        seen = [inspect_pair(pair, look) for pair in pairs]
        fatal = next((found for found in findings_of(split, seen, sample=True) if found.fatal), None)
        if fatal is not None:
            raise UserError(f'{fatal.sentence} [volo-seg check lists all findings, --no-check trains without looking]')


def label_counts(split: Split, *, processes: int, watch: Watch | None = None) -> list[Observation]:
    """The label values of a split, its images unread."""
    look = Look(images=False, table=split.table)
    return _watched(split, inspect_pairs(split.pairing.pairs, look, processes=processes), watch)


def evenly(items: Sequence[tuple[str, str | None]], count: int) -> list[tuple[str, str | None]]:
    """``count`` of ``items``, evenly spread, first and last among them; all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def _watched(split: Split, observations: Iterable[Observation], watch: Watch | None) -> list[Observation]:
    return list(watch(observations, len(split.pairing.pairs), split.name) if watch else observations)
