"""The page and the table of the images whose labels are probably wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from volo_seg.reports.page import render
from volo_seg.visualization import default_palette, draw_sheet, make_row

if TYPE_CHECKING:
    from volo_seg.evaluation.label_review import Suspect

COLUMNS: tuple[str, ...] = ('rank', 'image', 'image_score', 'kind', 'score', 'left', 'top', 'right', 'bottom')
COLUMNS += ('label_class', 'predicted_class', 'mean_confidence', 'shift_x', 'shift_y')
SHOWN = 0.25
"""Regions are outlined from this share of the score of their image on."""
_OUTLINE = (255, 255, 255)
_SIZE = (320, 320)


def review_csv(suspects: Sequence[Suspect], images: Sequence[str], classes: Sequence[str]) -> str:
    """A row per shift and region; an image without any has one row."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(COLUMNS)
    for number, one in enumerate(suspects, start=1):
        rows: list[list[Any]] = []
        if one.shift is not None:
            rows.append(['shift', f'{one.score:.6f}', *[''] * 7, *one.shift])
        for region in one.regions:
            names = classes[region.label], classes[region.predicted]
            rows.append(['region', f'{region.score:.6f}', *region.box, *names, f'{region.confidence:.4f}', '', ''])
        for row in rows or [['none', *[''] * 10]]:
            writer.writerow([number, images[one.index], f'{one.score:.6f}', *row])
    return stream.getvalue()


def suspect_picture(
    suspect: Suspect,
    *,
    image: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    palette: Any,
) -> bytes:
    """A JPEG of ``image`` (H, W, 3), BGR, with its labels and the prediction (H, W), the regions outlined in white."""
    colours = palette or default_palette(len(classes), first=1).tolist()
    row = make_row('', image=np.moveaxis(image, -1, 0), labels=(labels, predicted), size=_SIZE)
    scale = np.array(row.image.shape[1::-1]) / np.array(labels.shape[1::-1])
    least = SHOWN * suspect.score
    outlines = [line for one in suspect.regions if one.score >= least for line in one.outline]
    lines = [np.rint(line * scale).astype(np.int32) for line in outlines] if suspect.shift is None else []
    pictures: list[Any] = [
        np.ascontiguousarray(row.image),
        *(np.ascontiguousarray(part, np.int32) for part in row.labels),
    ]
    for picture, colour in zip(pictures, (_OUTLINE, len(classes), len(classes)), strict=True):
        cv2.drawContours(picture, lines, -1, colour, 2)
    outlined = type(row)(row.name, pictures[0], tuple(pictures[1:]), row.note)
    named = [*classes, 'suspicious'], [*colours, list(_OUTLINE)]
    return draw_sheet(
        [outlined], title='', classes=named[0], palette=named[1], columns=('image', 'label', 'prediction')
    )


def review_page(
    suspects: Sequence[Suspect],
    pictures: Sequence[bytes],
    *,
    images: Sequence[str],
    classes: Sequence[str],
    title: str,
    facts: Sequence[str],
) -> str:
    """The HTML page with the first ``len(pictures)`` of ``suspects``."""
    entries = []
    for one, picture in zip(suspects, pictures, strict=False):
        least = SHOWN * one.score
        told = [
            f'{classes[region.label]} where the model sees {classes[region.predicted]} ({region.confidence:.0%} sure)'
            for region in one.regions
            if region.score >= least
        ]
        if one.shift is not None:
            told = ['labels moved by ({}, {}) pixels agree better'.format(*one.shift)]
        name = '/'.join(PurePath(images[one.index]).parts[-2:])
        entries.append({'name': name, 'score': 100 * one.score, 'told': told[:4], 'picture': picture})
    return render('review.html.j2', generator='volo-seg review', title=title, facts=facts, entries=entries)
