"""A run as one HTML page without scripts and without links: ``report.html.j2`` filled with what a work dir holds."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

from volo_seg.errors import UserError
from volo_seg.reports.evaluation import Evaluation, most_confused, read_evaluation, read_records, read_sheets
from volo_seg.reports.plots import curve_svg, histogram_svg
from volo_seg.reports.runs import Run, join_logs, log_files
from volo_seg.reports.work_dir import WorkDir, text, tree

GENERATOR = 'volo-seg report'
_MAX_SHEETS = 8
_MAX_VALIDATIONS = 100
_VALIDATION_KEYS = ('mIoU', 'train_mIoU', 'mAcc', 'aAcc', 'mFscore')
_CURVES = {'loss': 'loss', 'lr': 'learning rate', 'mIoU': 'validation mIoU'}
_SCORES = {
    'mIoU': 'mIoU',
    'aAcc': 'pixel accuracy',
    'mAcc': 'mean accuracy',
    'boundary_mIoU': 'boundary mIoU',
    'expected_calibration_error': 'calibration error',
}


def build_page(path: Path) -> str:
    """The page about the work dir ``path``: summary, curves, classes, confusion, images, contact sheets, records.

    The work dir may come from somebody else. Names in its files are shown as text, only files below it are read, and
    files that cannot be used are left out and listed at the end of the page.

    Raises:
        UserError: ``path`` is not a folder, or holds neither logs nor metrics.
    """
    from markupsafe import Markup

    if not path.is_dir():
        raise UserError(f'{str(path)!r} is not a folder; name a work dir of volo-seg train or volo-seg test')
    work_dir = WorkDir(path)
    run: Run | None = join_logs(work_dir, log_files(work_dir))
    if run and run.damaged:
        work_dir.notes.append(f'{run.damaged} damaged line(s) of the logs are left out.')
    run = run if run and run.sessions else None
    evaluation = read_evaluation(work_dir)
    if run is None and evaluation is None:
        problems = f' ({work_dir.notes[0]})' if work_dir.notes else ''
        raise UserError(
            f'{str(path)!r} holds neither logs nor metrics{problems}; name a work dir of volo-seg train or test'
        )
    records = read_records(work_dir)
    trained: dict[str, Any] = next((record for record in reversed(records) if record.get('kind') == 'train'), {})
    return render(
        'report.html.j2',
        generator=GENERATOR,
        title=text(work_dir.root.name),
        facts=[text(trained[key]) for key in ('config', 'started', 'status') if trained.get(key)],
        tiles=_score_tiles(evaluation) + (_run_tiles(run) if run else []),
        curves=[{**curve, 'svg': Markup(curve['svg'])} for curve in (_curves(run) if run else [])],
        validations=run.val[-_MAX_VALIDATIONS:] if run else [],
        validation_keys=[key for key in _VALIDATION_KEYS if run and any(key in record for record in run.val)],
        evaluation=evaluation,
        confused=most_confused(evaluation, limit=10) if evaluation else [],
        histogram=Markup(histogram_svg(evaluation.image_ious, name='image-mIoU'))
        if evaluation and len(evaluation.image_ious) > 1
        else None,
        sheets=list(reversed(read_sheets(work_dir, limit=_MAX_SHEETS))),
        records=[tree(record) for record in reversed(records)],
        notes=work_dir.notes,
    )


def render(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of ``values``."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: '–' if value is None else value,
    )
    environment.filters['base64'] = lambda content: base64.b64encode(content).decode()
    return environment.get_template(template).render(**values)


def is_report(path: Path) -> bool:
    """Whether ``path`` is a page that :func:`build_page` made."""
    content = WorkDir(path.parent).read(path, limit=2**30)
    return content is not None and f'content="{GENERATOR}"'.encode() in content[:2000]


def _score_tiles(evaluation: Evaluation | None) -> list[tuple[str, str, str]]:
    """(label, value, note) of each score of the evaluation."""
    if evaluation is None:
        return []
    images = '' if evaluation.images is None else f'{evaluation.images} images'
    return [
        (label, f'{evaluation.scores[key]:.2f}', images if key == 'mIoU' else '')
        for key, label in _SCORES.items()
        if key in evaluation.scores
    ]


def _run_tiles(run: Run) -> list[tuple[str, str, str]]:
    tiles = []
    best = run.best()
    if best is not None and len(run.curve('mIoU')[0]) > 1:
        trained = run.training_score(best[1])
        beside = '' if trained is None else f', {trained:.2f} on training images'
        tiles.append(('best validation mIoU', f'{best[0]:.2f}', f'at iteration {best[1]:.0f}{beside}'))
    steps, losses = run.curve('loss')
    if steps:
        sessions = f'in {run.sessions} sessions' if run.sessions > 1 else ''
        tiles += [('iterations', f'{max(steps):.0f}', sessions), ('last loss', f'{losses[-1]:.4g}', '')]
    seconds = run.step_time()
    if seconds is not None:
        tiles.append(('seconds per iteration', f'{seconds:.3g}', ''))
    memory = [value for value in run.curve('memory')[1] if math.isfinite(value)]
    if memory:
        tiles.append(('GPU memory', f'{max(memory) / 1024:.1f} GiB', ''))
    return tiles


def _curves(run: Run) -> list[dict[str, str]]:
    curves = []
    for key, title in _CURVES.items():
        values = run.curve(key)[1]
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            note = f'last {values[-1]:.4g}' if key == 'loss' else f'highest {max(finite):.4g}'
            trained = run.curve(f'train_{key}')[1]
            if trained:
                note += f'; dashed: training images, last {trained[-1]:.4g}'
            curves.append({'title': title, 'note': note, 'svg': curve_svg(run, key)})
    return curves
