"""What a run has logged: MMEngine's ``scalars.json``, joined over the sessions of a run that was resumed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volo_seg.errors import UserError

NAME = 'scalars.json'
_STAMP = re.compile(r'\d{8}_\d{6}')

Record = dict[str, float]
Curve = tuple[list[float], list[float]]


@dataclass
class Run:
    """The scalars of one run in the order of iterations, keys without ``train/`` and ``val/``."""

    folder: Path
    train: list[Record] = field(default_factory=list)
    val: list[Record] = field(default_factory=list)
    sessions: int = 0
    damaged: int = 0
    """Lines that could not be read, as a kill in the middle of writing leaves them."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def keys(self) -> list[str]:
        """What can be drawn, losses and rates first, then scores."""
        train = {key for record in self.train for key in record} - {'step', 'iter', 'epoch'}
        val = {key for record in self.val for key in record} - {'step', 'iter', 'time', 'data_time'} - train
        return sorted(train) + sorted(val, key=lambda key: (key.startswith('IoU/'), key))

    def curve(self, key: str) -> Curve:
        """Iterations and values of ``key``, from training if it is logged there, else from the validations."""
        for records in (self.train, self.val):
            points = [(record['step'], record[key]) for record in records if key in record]
            if points:
                return [point[0] for point in points], [point[1] for point in points]
        return [], []

    def best(self, key: str = 'mIoU') -> tuple[float, float] | None:
        """The highest value of ``key`` and its iteration."""
        steps, values = self.curve(key)
        known = [(value, step) for value, step in zip(values, steps, strict=True) if math.isfinite(value)]
        return max(known, key=lambda pair: (pair[0], -pair[1]), default=None)

    def step_time(self) -> float | None:
        """Mean seconds of an iteration."""
        values = [value for value in self.curve('time')[1] if math.isfinite(value)] if self.train else []
        return sum(values) / len(values) if values else None


def read_run(path: str | Path) -> Run:
    """Read the logs below ``path``: a work dir, one of its log folders, or a ``scalars.json``.

    A later session replaces what an earlier one logged from the later one's first iteration on.

    Raises:
        UserError: there is no such folder, or it holds no log of a training.
    """
    path = Path(path)
    files = log_files(path)
    if not files:
        missing = 'does not exist' if not path.exists() else f'holds no log of a training (*/vis_data/{NAME})'
        raise UserError(f'{str(path)!r} {missing}; name a work dir of volo-seg train')
    run = Run(path if path.is_dir() else path.parent)
    for file in files:
        train, val, damaged = _read(file)
        run.damaged += damaged
        if not train and not val:
            continue
        run.sessions += 1
        first = min(record['step'] for record in [*train, *val])
        run.train = [record for record in run.train if record['step'] < first] + train
        run.val = [record for record in run.val if record['step'] < first] + val
    if not run.train and not run.val:
        raise UserError(f'the logs of {str(path)!r} hold no value yet; let it train a little longer')
    return run


def log_files(path: Path) -> list[Path]:
    """The ``scalars.json`` files that belong to ``path``, oldest first."""
    if path.is_file():
        return [path]
    own = [file for file in (path / 'vis_data' / NAME, path / NAME) if file.is_file()]
    return own[:1] or sorted(path.glob(f'*/vis_data/{NAME}'), key=_age)


def _age(file: Path) -> tuple[str, float]:
    name = file.parent.parent.name
    return (name if _STAMP.fullmatch(name) else '', file.stat().st_mtime)


def _read(file: Path) -> tuple[list[Record], list[Record], int]:
    """Records of training and of validation, and the number of damaged lines; repeated iterations: the last wins."""
    train: dict[float, Record] = {}
    val: dict[float, Record] = {}
    damaged = 0
    try:
        lines = file.read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError as error:
        raise UserError(f'{str(file)!r} cannot be read ({error.strerror}); check the path') from error
    for line in filter(str.strip, lines):
        record = _record(line)
        if record is None:
            damaged += 1
            continue
        is_val = any(key.startswith('val/') for key in record) or not ({'lr', 'loss', 'train/lr'} & record.keys())
        plain = {key.removeprefix('train/').removeprefix('val/'): value for key, value in record.items()}
        (val if is_val else train)[record['step']] = plain
    return [train[step] for step in sorted(train)], [val[step] for step in sorted(val)], damaged


def _record(line: str) -> Record | None:
    try:
        content: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get('step'), (int, float)):
        return None
    return {key: value for key, value in content.items() if isinstance(value, (int, float))}


def labels_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run, as short as tells them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for length in range(1, max((len(part) for part in parts), default=1) + 1):
        names = ['/'.join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{index + 1}: {run.name}' for index, run in enumerate(runs)]


def smooth(values: Sequence[float]) -> list[float]:
    """Means over a window of a fiftieth of the curve; what is no number is left out."""
    half = len(values) // 100
    if half == 0:
        return list(values)
    means = []
    for index in range(len(values)):
        near = [value for value in values[max(0, index - half) : index + half + 1] if math.isfinite(value)]
        means.append(sum(near) / len(near) if near else math.nan)
    return means


def table(runs: Sequence[Run]) -> str:
    """One line a run: iterations, seconds an iteration, least and mean loss, best mIoU."""
    rows = [('run', 'iterations', 's/iteration', 'min loss', 'mean loss', 'best mIoU', 'at')]
    for run, label in zip(runs, labels_of(runs), strict=True):
        steps, losses = run.curve('loss')
        finite = [value for value in losses if math.isfinite(value)]
        best = run.best()
        rows.append(
            (
                label,
                f'{max(steps):.0f}' if steps else '-',
                _figure(run.step_time()),
                _figure(min(finite, default=None)),
                _figure(sum(finite) / len(finite) if finite else None),
                '-' if best is None else f'{best[0]:.2f}',
                '-' if best is None else f'{best[1]:.0f}',
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join(_line(row, widths) for row in rows)


def _figure(value: float | None) -> str:
    return '-' if value is None else f'{value:.4f}'


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    first, *rest = (
        cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return '  '.join([first, *rest])
