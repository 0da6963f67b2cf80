"""A run as one HTML file: nothing is fetched, nothing is executed, whatever stands in names is text."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path, PurePath
from typing import Any

from volo_seg.errors import UserError
from volo_seg.reports import charts
from volo_seg.reports.results import Evaluation, most_confused, read_evaluation, read_records, read_sheets
from volo_seg.reports.runs import Run, log_files, read_run
from volo_seg.reports.style import STYLE

GENERATOR = 'volo-seg report'
_MOST_NUMBERED = 40
_MOST_SHEETS = 8
_SHARES = (('mIoU', 'mIoU'), ('aAcc', 'pixel accuracy'), ('mAcc', 'mean accuracy'), ('boundary_mIoU', 'boundary mIoU'))


def build_page(work_dir: Path) -> str:
    """The page about ``work_dir``: summary, curves, classes, confusion, worst images, contact sheets, record.

    Raises:
        UserError: the folder is missing, or holds neither logs nor metrics.
    """
    if not work_dir.is_dir():
        raise UserError(f'{str(work_dir)!r} is not a folder; name a work dir of volo-seg train or volo-seg test')
    run = read_run(work_dir) if log_files(work_dir) else None
    evaluation = read_evaluation(work_dir)
    if run is None and evaluation is None:
        raise UserError(f'{str(work_dir)!r} holds neither logs nor metrics; name a work dir of volo-seg train or test')
    records = read_records(work_dir)
    parts = [_head(work_dir, run, evaluation, records)]
    if run is not None:
        parts.append(_curves(run))
    if evaluation is not None:
        parts += [_classes(evaluation), _confusion(evaluation), _images(evaluation)]
    parts += [_sheets(work_dir), *(_record(record) for record in reversed(records))]
    return _document(work_dir.resolve().name, ''.join(parts))


def is_ours(path: Path) -> bool:
    """Whether ``path`` is a page that this module wrote."""
    try:
        with open(path, encoding='utf-8') as file:
            return f'content="{GENERATOR}"' in file.read(2000)
    except (OSError, UnicodeDecodeError):
        return False


def _document(title: str, body: str) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="{GENERATOR}">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n'
    )


def _head(work_dir: Path, run: Run | None, evaluation: Evaluation | None, records: Sequence[dict[str, Any]]) -> str:
    tiles: list[tuple[str, str, str]] = []
    if evaluation is not None:
        images = evaluation.metrics.get('images')
        for key, label in _SHARES:
            value = evaluation.metrics.get(key)
            if isinstance(value, (int, float)):
                tiles.append((label, f'{value:.2f}', f'{images} images' if key == 'mIoU' else ''))
    if run is not None:
        tiles += _run_tiles(run)
    trained: dict[str, Any] = next((record for record in reversed(records) if record.get('kind') == 'train'), {})
    facts = [str(trained[key]) for key in ('config', 'started', 'status') if trained.get(key)]
    return (
        f'<header><h1>{escape(work_dir.resolve().name)}</h1><p>{escape("  ·  ".join(facts))}</p></header>'
        '<section class="tiles">'
        + ''.join(
            f'<div><span>{escape(label)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'
            for label, value, note in tiles
        )
        + '</section>'
    )


def _run_tiles(run: Run) -> list[tuple[str, str, str]]:
    tiles = []
    best = run.best()
    if best is not None and len(run.curve('mIoU')[0]) > 1:
        tiles.append(('best validation mIoU', f'{best[0]:.2f}', f'at iteration {best[1]:.0f}'))
    steps, losses = run.curve('loss')
    if steps:
        note = f'in {run.sessions} sessions' if run.sessions > 1 else ''
        tiles += [('iterations', f'{max(steps):.0f}', note), ('last loss', charts.short(losses[-1]), '')]
    if run.step_time() is not None:
        tiles.append(('s / iteration', charts.short(run.step_time() or 0), ''))
    memory = run.curve('memory')[1]
    if memory:
        tiles.append(('GPU memory', f'{max(memory) / 1024:.1f} GiB', ''))
    return tiles


def _curves(run: Run) -> str:
    parts = []
    for key, title in (('loss', 'loss'), ('lr', 'learning rate'), ('mIoU', 'validation mIoU')):
        steps, values = run.curve(key)
        finite = [value for value in values if math.isfinite(value)]
        if finite:
            told = f'last {charts.short(values[-1])}' if key == 'loss' else f'highest {charts.short(max(finite))}'
            dots = key == 'mIoU' and len(steps) <= 60
            parts.append(charts.line_chart(title, steps, values, told=told, dots=dots))
    body = ''.join(parts)
    return _section('Curves', f'<div class="charts">{body}</div>') if body else ''


def _classes(evaluation: Evaluation) -> str:
    rows = [row for row in evaluation.classes if isinstance(row.get('IoU'), (int, float))]
    if not rows:
        return ''
    total = sum(row.get('truth_pixels') or 0 for row in rows) or 1
    lines = []
    for row in sorted(rows, key=lambda row: row['IoU']):
        iou, accuracy = float(row['IoU']), row.get('Acc')
        told = f'{accuracy:.1f}' if isinstance(accuracy, (int, float)) else '–'
        share = 100 * (row.get('truth_pixels') or 0) / total
        lines.append(
            f'<tr><th scope="row">{escape(str(row["class"]))}</th>'
            f'<td class="bar"><i style="width:{min(100, max(0, iou)):.2f}%"></i></td>'
            f'<td>{iou:.1f}</td><td>{told}</td><td>{share:.2f}</td></tr>'
        )
    absent = [str(row['class']) for row in evaluation.classes if row.get('absent')]
    note = f'<p class="note">Neither in the truth nor predicted: {escape(", ".join(absent))}.</p>' if absent else ''
    heads = '<tr><th>class</th><th class="bar"></th><th>IoU</th><th>accuracy</th><th>% of pixels</th></tr>'
    return _section(
        'Classes, worst first',
        f'<table class="classes"><thead>{heads}</thead><tbody>{"".join(lines)}</tbody></table>{note}',
    )


def _confusion(evaluation: Evaluation) -> str:
    matrix = evaluation.matrix
    if matrix is None or not matrix:
        return ''
    names = [str(row['class']) for row in evaluation.classes]
    if len(names) <= _MOST_NUMBERED:
        picture = charts.confusion_chart(names, matrix)
    else:
        picture = _png(evaluation.folder / 'confusion_matrix.png')
    rows = ''.join(
        f'<tr><th scope="row">{escape(true)}</th><td>{escape(taken)}</td><td>{100 * share:.1f} %</td>'
        f'<td>{pixels:,}</td></tr>'
        for true, taken, pixels, share in most_confused(names, matrix, most=10)
    )
    heads = '<tr><th>class</th><th>taken for</th><th>of its pixels</th><th>pixels</th></tr>'
    table = f'<div><h3>Most pixels</h3><table><thead>{heads}</thead><tbody>{rows}</tbody></table></div>'
    note = '<p class="note">Rows: truth, columns: prediction, in percent of each true class.</p>'
    return _section('Confusion', f'{note}<div class="beside">{picture}{table if rows else ""}</div>')


def _images(evaluation: Evaluation) -> str:
    parts = []
    if len(evaluation.image_ious) > 1:
        parts.append(f'<div class="charts">{charts.histogram("mIoU of single images", evaluation.image_ious)}</div>')
    for entry, content in evaluation.worst():
        name = escape('/'.join(PurePath(str(entry.get('image', ''))).parts[-2:]))
        scores = [
            f'{label} {entry[key]:.1f}'
            for key, label in (('mIoU', 'mIoU'), ('aAcc', 'pixel accuracy'))
            if isinstance(entry.get(key), (int, float))
        ]
        parts.append(
            f'<figure class="shot"><figcaption><b>{escape(", ".join(scores))}</b> {name}</figcaption>'
            f'{_jpeg(content, f"image, prediction and truth of {name}")}</figure>'
        )
    return _section('Images, worst first', ''.join(parts)) if parts else ''


def _sheets(work_dir: Path) -> str:
    sheets = read_sheets(work_dir, most=_MOST_SHEETS)
    parts = [
        f'<details{" open" if index == 0 else ""}><summary>after iteration {step}</summary>'
        f'{_jpeg(content, f"validation images after iteration {step}")}</details>'
        for index, (step, content) in enumerate(reversed(sheets))
    ]
    return _section('The same images at each validation', ''.join(parts)) if parts else ''


def _record(record: dict[str, Any]) -> str:
    rows = ''.join(
        f'<tr><th scope="row">{escape(key.replace("_", " "))}</th><td>{_value(value)}</td></tr>'
        for key, value in record.items()
        if value not in (None, '', [], {})
    )
    title = {'train': 'Training', 'test': 'Test'}.get(str(record.get('kind')), 'Run')
    when = escape(str(record.get('started', '')))
    return (
        f'<section><details class="record"><summary>{title} {when}</summary>'
        f'<table><tbody>{rows}</tbody></table></details></section>'
    )


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return '<br>'.join(
            f'{escape(str(key))}: {_value(item)}' for key, item in value.items() if item not in (None, [])
        )
    if isinstance(value, list):
        return escape(' '.join(str(item) for item in value))
    return escape(str(value))


def _section(title: str, body: str) -> str:
    return f'<section><h2>{escape(title)}</h2>{body}</section>'


def _jpeg(content: bytes, told: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<div class="scroll"><img alt="{told}" src="data:image/jpeg;base64,{data}"></div>'


def _png(path: Path) -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ''
    return f'<div class="scroll"><img alt="confusion matrix" src="data:image/png;base64,{data}"></div>'
