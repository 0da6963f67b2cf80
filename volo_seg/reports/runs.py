"""The values that a run has logged: MMEngine's ``scalars.json``, joined over the sessions of a resumed run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volo_seg.errors import UserError
from volo_seg.reports.work_dir import MAX_NUMBER, WorkDir, number, text

NAME = 'scalars.json'
_STAMP = re.compile(r'\d{8}_\d{6}')
_MAX_LOG_BYTES = 256 * 2**20
_MAX_STEP = 1e12

Record = dict[str, float]
Curve = tuple[list[float], list[float]]


@dataclass
class Run:
    """The scalars of one run in the order of iterations, keys without ``train/`` and ``val/``.

    Attributes:
        folder: The work dir or log folder.
        train: Records of training, one per logged iteration.
        val: Records of validation.
        sessions: How often training was started.
        damaged: Lines that could not be read; a process killed while it writes leaves one.
    """

    folder: Path
    train: list[Record] = field(default_factory=list)
    val: list[Record] = field(default_factory=list)
    sessions: int = 0
    damaged: int = 0

    def keys(self) -> list[str]:
        """The keys that can be plotted: training first, then scores, then scores of single classes."""
        train = {key for record in self.train for key in record} - {'step', 'iter', 'epoch'}
        val = {key for record in self.val for key in record} - {'step', 'iter', 'time', 'data_time'} - train
        return sorted(train) + sorted(val, key=lambda key: (key.startswith('IoU/'), key))

    def curve(self, key: str) -> Curve:
        """Iterations and values of ``key``: those of training if it is logged there, else those of validation."""
        for records in (self.train, self.val):
            points = [(record['step'], record[key]) for record in records if key in record]
            if points:
                return [point[0] for point in points], [point[1] for point in points]
        return [], []

    def best(self, key: str = 'mIoU') -> tuple[float, float] | None:
        """The highest value of ``key`` and its iteration; the first of equal ones."""
        steps, values = self.curve(key)
        known = [(value, step) for value, step in zip(values, steps, strict=True) if math.isfinite(value)]
        return max(known, key=lambda pair: (pair[0], -pair[1]), default=None)

    def training_score(self, step: float, key: str = 'mIoU') -> float | None:
        """``key`` on training images at the validation after ``step`` iterations; None if it was not logged."""
        return dict(zip(*self.curve(f'train_{key}'), strict=True)).get(step)

    def step_time(self) -> float | None:
        """Mean seconds per iteration."""
        values = [value for value in self.curve('time')[1] if math.isfinite(value)] if self.train else []
        return sum(values) / len(values) if values else None


def read_run(path: str | Path) -> Run:
    """Read the logs below ``path``: a work dir, one of its log folders, or a ``scalars.json``.

    Raises:
        UserError: ``path`` does not exist, or holds no readable log of a training.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'{str(path)!r} does not exist; name a work dir of volo-seg train')
    work_dir = WorkDir(path if path.is_dir() else path.resolve().parent)
    files = log_files(work_dir) if path.is_dir() else [path.resolve()]
    if not files:
        raise UserError(
            f'{str(path)!r} holds no log of a training (*/vis_data/{NAME}); name a work dir of volo-seg train'
        )
    run = join_logs(work_dir, files)
    if work_dir.notes:
        raise UserError(f'the logs of {str(path)!r} cannot be read: {work_dir.notes[0]}')
    if not run.sessions:
        raise UserError(f'the logs of {str(path)!r} hold no value yet; let it train a little longer')
    run.folder = path if path.is_dir() else path.parent
    return run


def log_files(work_dir: WorkDir) -> list[Path]:
    """The ``scalars.json`` files of a work dir or log folder, the oldest session first."""
    own = work_dir.find(f'vis_data/{NAME}') or work_dir.find(NAME)
    # find() sorts by time; folders of MMEngine are named by their time
    return own or sorted(work_dir.find(f'*/vis_data/{NAME}'), key=_stamp)


def join_logs(work_dir: WorkDir, files: Sequence[Path]) -> Run:
    """The run that ``files`` log, oldest session first.

    A later session replaces what earlier ones logged from its own first iteration on. Within a session, the last of
    several records of one iteration counts.
    """
    run = Run(work_dir.root)
    for file in files:
        train: dict[float, Record] = {}
        val: dict[float, Record] = {}
        content = work_dir.read(file, limit=_MAX_LOG_BYTES) or b''
        for line in filter(str.strip, content.decode('utf-8', 'replace').splitlines()):
            record = _record(line)
            if record is None:
                run.damaged += 1
                continue
            is_val = any(key.startswith('val/') for key in record) or not ({'lr', 'loss', 'train/lr'} & record.keys())
            plain = {key.removeprefix('train/').removeprefix('val/'): value for key, value in record.items()}
            (val if is_val else train)[record['step']] = plain
        if train or val:
            run.sessions += 1
            first = min([*train, *val])
            for records, added in ((run.train, train), (run.val, val)):
                records[:] = [record for record in records if record['step'] < first]
                records += [added[step] for step in sorted(added)]
    return run


def run_labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: as many last parts of its path as are needed to tell the runs apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for length in range(1, max((len(part) for part in parts), default=1) + 1):
        names = [text('/'.join(part[-length:])) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f'{index + 1}: {text(run.folder.resolve().name)}' for index, run in enumerate(runs)]


def run_table(runs: Sequence[Run]) -> str:
    """One line per run: iterations, seconds per iteration, least and mean loss, best mIoU, at which iteration.

    ``train`` is the mIoU of training images at that iteration.
    """
    rows = [('run', 'iterations', 's/iteration', 'min loss', 'mean loss', 'best mIoU', 'at', 'train')]
    for run, label in zip(runs, run_labels(runs), strict=True):
        steps, losses = run.curve('loss')
        finite = [value for value in losses if math.isfinite(value)]
        best, seconds = run.best(), run.step_time()
        trained = None if best is None else run.training_score(best[1])
        rows.append(
            (
                label,
                f'{max(steps):.0f}' if steps else '-',
                '-' if seconds is None else f'{seconds:.4f}',
                f'{min(finite):.4f}' if finite else '-',
                f'{sum(finite) / len(finite):.4f}' if finite else '-',
                '-' if best is None else f'{best[0]:.2f}',
                '-' if best is None else f'{best[1]:.0f}',
                '-' if trained is None else f'{trained:.2f}',
            )
        )
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _stamp(file: Path) -> str:
    name = file.parent.parent.name
    return name if _STAMP.fullmatch(name) else ''


def _record(line: str) -> Record | None:
    """The numbers of a line of the log; a number that is not finite or beyond 1e30 is NaN. None if damaged."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = number(content.get('step')) if isinstance(content, dict) else None
    if step is None or not 0 <= step <= _MAX_STEP:
        return None
    numbers = {text(key): value for key, value in content.items() if isinstance(value, (int, float))}
    return {key: value if abs(value) <= MAX_NUMBER else math.nan for key, value in numbers.items()} | {'step': step}
