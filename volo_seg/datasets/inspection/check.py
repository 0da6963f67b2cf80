"""Check the files of all splits of a config, or a sample of them before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mmengine.config import Config

from volo_seg.datasets.inspection.findings import Finding, duplicates, findings_of, other_range
from volo_seg.datasets.inspection.observation import InspectionOptions, Observation, inspect_pair
from volo_seg.datasets.inspection.processes import inspect_pairs
from volo_seg.datasets.inspection.splits import Split, read_splits, split_names
from volo_seg.errors import UserError

Progress = Callable[[Iterable[Observation], int, str], Iterable[Observation]]
QUICK_COUNT = 32


@dataclass
class Checked:
    """A split with the observations of its files and the findings."""

    split: Split
    observations: list[Observation]
    findings: list[Finding] = field(default_factory=list)


def check_splits(
    config: Config, *, processes: int, fast: bool, progress: Progress | None = None
) -> tuple[list[Checked], list[Finding]]:
    """Read all files of all splits of ``config``; return the splits, and the findings of those that cannot be read.

    Args:
        config: Its data loaders define the splits.
        processes: Number of processes that read files.
        fast: Read the header of an image and its hash, and do not decode it.
        progress: Wraps the iteration over the observations; its other arguments are their number and the split's name.
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
            options = InspectionOptions(decode=not fast, table=split.table, reading=split.reading)
            seen = _inspect_all(split, options, processes, progress)
            checked.append(Checked(split, seen, findings_of(split, seen)))
    train = [seen for one in checked if one.split.name == 'train' for seen in one.observations]
    for one in checked:
        if one.split.name != 'train':
            one.findings += duplicates(train, one.observations, one.split.name)
            one.findings += other_range(train, one.observations, one.split.name)
    return checked, broken


def quick_check(config: Config, *, splits: Sequence[str] = ('train', 'val'), count: int = QUICK_COUNT) -> None:
    """Inspect ``count`` evenly spread pairs of each split, in one or two seconds.

    Raises:
        UserError: A finding is fatal; the message is that of the first one.
    """
    for split in (split for name in splits for split in read_splits(config, name)):
        pairs = evenly(split.pairing.pairs, count)
        options = InspectionOptions(digest=False, table=split.table, reading=split.reading)
        seen = [inspect_pair(pair, options) for pair in pairs]
        fatal = next((found for found in findings_of(split, seen, sample=True) if found.fatal), None)
        if fatal is not None:
            raise UserError(f'{fatal.sentence} [volo-seg check lists all findings, --no-check skips this check]')


def label_counts(split: Split, *, processes: int, progress: Progress | None = None) -> list[Observation]:
    """Read the label images of a split; its images are not read."""
    return _inspect_all(split, InspectionOptions(images=False, table=split.table), processes, progress)


def evenly(items: Sequence[tuple[str, str | None]], count: int) -> list[tuple[str, str | None]]:
    """``count`` evenly spread ``items`` with the first and the last, or all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def _inspect_all(
    split: Split, options: InspectionOptions, processes: int, progress: Progress | None
) -> list[Observation]:
    pairs = split.pairing.pairs
    observations = inspect_pairs(pairs, options, processes=processes)
    return list(progress(observations, len(pairs), split.name) if progress else observations)
