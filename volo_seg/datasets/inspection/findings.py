"""Derive findings from the observations of a split: the problem, its effect, and how to fix it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

from volo_seg.datasets.inspection.observation import Observation
from volo_seg.datasets.inspection.splits import Split
from volo_seg.datasets.pairs import suffix_hint
from volo_seg.label_png import ranges

WARNINGS = ('orientation', 'lossy', 'unused', 'unseen', 'ignored', 'duplicate', 'range', 'palette')
LEAST_CONTRAST = 32  # of 256 levels between the 0.1 and the 99.9 percentile
MOST_CLIPPED = 0.01  # share of the values


@dataclass(frozen=True)
class Finding:
    """A problem of a split: a sentence about the first file, and the paths of all files that have it."""

    split: str
    kind: str
    sentence: str
    paths: tuple[str, ...] = ()

    @property
    def fatal(self) -> bool:
        """Whether training would fail or learn from wrong labels."""
        return self.kind not in WARNINGS


def findings_of(split: Split, observations: Sequence[Observation], *, sample: bool = False) -> list[Finding]:
    """All findings of a split. With ``sample``, observations are a part of the files, and coverage is not checked."""
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for seen in observations:
        for kind, path, sentence in seen.problems:
            kinds[kind].append((path, sentence))
    of_files = [
        Finding(split.name, kind, problems[0][1], tuple(path for path, _ in problems))
        for kind, problems in kinds.items()
    ]
    found = [*_pairing(split), *of_files, *_values(split, observations), *_palettes(split, observations)]
    found += _ranges(split, observations)
    return found if sample else [*found, *_coverage(split, observations)]


def duplicates(train: Sequence[Observation], other: Sequence[Observation], name: str) -> Iterator[Finding]:
    """Yield a finding if images of ``other``, the split ``name``, have the same bytes as training images."""
    known = {seen.digest: seen.image for seen in train if seen.digest}
    same = [(seen.image, known[seen.digest]) for seen in other if seen.digest in known]
    if same:
        yield Finding(
            name,
            'duplicate',
            f'{same[0][0]!r} has the same bytes as {same[0][1]!r} of train ({len(same)} of {len(other)} images of '
            f'{name}): scores on {name} are too high; remove them from one of the two',
            tuple(image for image, _ in same),
        )


def other_range(train: Sequence[Observation], other: Sequence[Observation], name: str) -> Iterator[Finding]:
    """Yield a finding if images of ``other``, the split ``name``, use another range of values than training images."""
    ours, theirs = ([seen.deep.high if seen.deep else 255.0 for seen in found] for found in (train, other))
    if not any(seen.deep for seen in (*train, *other)) or not ours or not theirs:
        return
    first, second = median(ours), median(theirs)
    if max(first, second) > 2 * abs(min(first, second)):
        yield Finding(
            name,
            'range',
            f'images of {name} ({range_text(other)}) and of train ({range_text(train)}) differ in range: the network '
            'would see them at another brightness; write them with one scale',
        )


def range_text(observations: Sequence[Observation]) -> str:
    """The values of the images of more than 8 bits: ``values 12 to 4095 (uint16)``."""
    deep = [seen.deep for seen in observations if seen.deep]
    if not deep:
        return 'values of 8 bits'
    kinds = ' and '.join(sorted({one.dtype for one in deep}))
    least, largest = min(one.least for one in deep), max(one.largest for one in deep)
    return f'values {least:g} to {largest:g} ({kinds})'


def _ranges(split: Split, observations: Sequence[Observation]) -> Iterator[Finding]:
    """Find values of more than 8 bits that are nearly black, without contrast, or clipped after the conversion to 8."""
    deep = [seen.deep for seen in observations if seen.deep]
    if not deep:
        return
    value_range = split.reading and split.reading.value_range
    rule = f'range={value_range}' if value_range else 'the upper 8 bits'
    low, high = min(one.low for one in deep), max(one.high for one in deep)
    fix = f"set range=({low:g}, {high:g}) of LoadImageFromFile (_scope_='volo_seg') in all pipelines"
    dark, bright = median(one.dark for one in deep), median(one.bright for one in deep)
    clipped = mean(one.clipped for one in deep)
    paths = tuple(seen.image for seen in observations if seen.deep)
    seen = f'images of {split.name} have {range_text(observations)}, of which training sees'
    if bright - dark < LEAST_CONTRAST:
        look = 'nearly black' if bright < LEAST_CONTRAST else 'without contrast'
        yield Finding(
            split.name, 'range', f'{seen} levels {dark:g} to {bright:g} of 255 by {rule}: {look}; {fix}', paths
        )
    elif clipped > MOST_CLIPPED:
        yield Finding(split.name, 'range', f'{seen} {clipped:.1%} clipped by {rule}; {fix}', paths)


def _pairing(split: Split) -> Iterator[Finding]:
    pairing = split.pairing
    if not pairing.pairs and not pairing.unlabelled:
        yield Finding(
            split.name,
            'empty',
            f'{split.name} has no pair of an image and a label image; check data_root, data_prefix and the suffixes '
            f'of {split.kind}',
        )
    if pairing.unlabelled:
        image, mask = pairing.unlabelled[0]
        hint = suffix_hint(pairing, suffix=split.mask_suffix)
        images = len(pairing.pairs) + len(pairing.unlabelled)
        yield Finding(
            split.name,
            'unlabelled',
            f'image {image!r} has no label image {mask!r} ({len(pairing.unlabelled)} of {images} images have none): '
            f'training would stop there; add it, or remove the image{hint}',
            tuple(image for image, _ in pairing.unlabelled),
        )
    if pairing.twins:
        one, other = pairing.twins[0]
        yield Finding(
            split.name,
            'twins',
            f'{one!r} and {other!r} share a name and would share a label image; rename one',
            tuple(path for _, path in pairing.twins),
        )
    if pairing.unused:
        yield Finding(
            split.name,
            'unused',
            f'label image {pairing.unused[0]!r} belongs to no image and is not used; add the image, or check how '
            'the two are named',
            tuple(pairing.unused),
        )


def _values(split: Split, observations: Sequence[Observation]) -> Iterator[Finding]:
    """Find label values out of range, and binary masks whose white value is not a class."""
    total: Counter[int] = Counter()
    for seen in observations:
        total.update(seen.values)
    values = sorted(total)
    bad = [value for value in values if not split.in_range(value)]
    if is_binary(split, values):
        white = values[-1]
        paths = _paths(observations, [white])
        effect = 'is ignored, so that only class 0 is learned' if split.in_range(white) else 'is not a class'
        fix = 'by rewriting the label images'
        if split.kind == 'FolderDataset':
            fix = f'with label_map={{{white}: 1}} in the data set (--cfg-options {split.place}.label_map.{white}=1)'
        yield Finding(
            split.name,
            'binary',
            f'labels hold 0 and {white} ({paths[0]!r}): a binary mask saved as 8-bit, whose {white} {effect}; '
            f'map {white} to 1 {fix}',
            paths,
        )
    elif bad:
        paths = _paths(observations, bad)
        first = next(value for seen in observations for value in seen.values if value in bad)
        count = len(split.classes)
        known = f'1..{count} are classes, 0 is ignored' if split.reduce_zero_label else f'0..{count - 1} are classes'
        yield Finding(
            split.name,
            'value',
            f'label image {paths[0]!r} holds {first}, and with {count} classes {known}, {split.ignore_index} is '
            f'ignored; training stops there, on a GPU with a device-side assert; '
            f'{_fix(split, values, bad)} (values out of range in {split.name}: {ranges(bad)})',
            paths,
        )


def _palettes(split: Split, observations: Sequence[Observation]) -> Iterator[Finding]:
    """Find label images whose palette gives two values or more the colours of other classes."""
    owners = {colour: label for label, colour in enumerate(split.palette)}
    if len(owners) < len(split.classes):
        return  # some colours have no owner or several
    first: dict[int, int] = {}
    paths: list[str] = []
    for seen in observations:
        drawn = {int(split.lookup[value]): owners[c] for value, c in seen.palette.items() if c in owners}
        moved = {label: owner for label, owner in drawn.items() if label != owner and label < len(split.classes)}
        if len(set(moved.values())) > 1:
            first, paths = first or moved, [*paths, str(seen.mask)]
    if paths:
        theirs = ', '.join(f'{label} {split.classes[owner]!r}' for label, owner in sorted(first.items()))
        ours = ', '.join(f'{label} {split.classes[label]!r}' for label in sorted(first))
        yield Finding(
            split.name,
            'palette',
            f'label image {paths[0]!r} has the colours of the classes {theirs} in its palette, but the class list has '
            f'{ours}; check the order of the classes',
            tuple(paths),
        )


def is_binary(split: Split, values: Sequence[int]) -> bool:
    """Whether ``values`` are 0 and one other value that is not a class."""
    white = values[-1] if values else 0
    return (
        len(values) == 2
        and values[0] == 0
        and int(split.lookup[white]) >= len(split.classes)
        and (white == 255 or len(split.classes) <= 2)
        and not split.reduce_zero_label
    )


def _coverage(split: Split, observations: Sequence[Observation]) -> Iterator[Finding]:
    labelled = [seen for seen in observations if seen.values]
    if not labelled:
        return
    ignored = {value for value in range(256) if split.lookup[value] == split.ignore_index}
    empty = [str(seen.mask) for seen in labelled if seen.values.keys() <= ignored]
    if empty:
        yield Finding(
            split.name,
            'ignored' if len(empty) < len(labelled) else 'all ignored',
            f'label image {empty[0]!r} is ignored in every pixel ({len(empty)} of {len(labelled)} in {split.name}), '
            'so nothing is learned from it; check ignore_index and reduce_zero_label, or remove the pair',
            tuple(empty),
        )
    seen_classes = {int(split.lookup[value]) for seen in labelled for value in seen.values}
    unseen = [name for label, name in enumerate(split.classes) if label not in seen_classes]
    if unseen:
        effect = 'cannot be learned' if split.name == 'train' else 'gets no score'
        yield Finding(
            split.name,
            'unseen',
            f'{len(unseen)} of {len(split.classes)} classes do not occur in {split.name}, and such a class {effect}'
            f': {", ".join(unseen[:10])}{f" and {len(unseen) - 10} more" if len(unseen) > 10 else ""}; add images with '
            'them, or remove them from the class list',
        )


def _paths(observations: Sequence[Observation], values: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(seen.mask) for seen in observations if any(value in seen.values for value in values))


def _fix(split: Split, values: Sequence[int], bad: Sequence[int]) -> str:
    count = len(split.classes)
    if split.kind == 'CityscapesDataset' or (count == 19 and max(values) <= 33):
        return 'these look like labelIds: write labelTrainIds with volo-seg cityscapes, and use them'
    if bad == [count] and 0 not in values:
        return 'labels count from 1: set reduce_zero_label=True'
    ignore = f'set ignore_labels={list(bad)}' if split.kind == 'FolderDataset' else 'rewrite it as the ignored value'
    return f'if it means "none", {ignore}; if it is a class, add its name to the classes'
