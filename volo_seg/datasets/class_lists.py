"""Read lists of class names, in the formats that people and annotation tools write."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from volo_seg.datasets.masks import Colour
from volo_seg.errors import UserError
from volo_seg.io import read_lines

_MAX_CHARACTERS = 256  # in a class name
_HEADER = re.compile(
    r'((train)?ids?|idx|index|value|pixel|class(es)?|names?|labels?|categor(y|ies)|r|g|b|red|green|blue|rgb|colou?r)'
)
_LABELMAP = re.compile(r'([^:]*):(?:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*)?:[^:]*:[^:]*')
_NUMBERED = re.compile(r'(\d+)(\s*[,;:]\s*|\s+)(.*[^\d\s,;:].*)')
_COLOURED = re.compile(r'(.+?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)')


def read_classes(classes: Sequence[str] | str | None, data_root: str) -> tuple[list[str], list[Colour] | None]:
    """The class names, and their colours if the file has them.

    Args:
        classes: The names, or a file of them; None means ``<data_root>/classes.txt``.
        data_root: Folder of the data set.

    Raises:
        UserError: See :func:`read_class_list` and :func:`check_class_names`.
    """
    if classes is not None and not isinstance(classes, str):
        return check_class_names(classes), None
    path = Path(classes) if classes else Path(data_root, 'classes.txt')
    if not path.exists():
        raise UserError(f'class names are missing: write one per line into {str(path)!r}, or give classes=[…]')
    return read_class_list(path)


def read_class_list(path: Path) -> tuple[list[str], list[Colour] | None]:
    """Read class names, and their RGB colours if given, from a text file (UTF-8, or UTF-16 with byte order mark).

    Empty lines are skipped. The format is recognised:

    * ``name`` or ``name R G B`` on each line, also separated by commas, as CSV with a header ``name,r,g,b``;
    * the same with the label value first, ``0, name``, with or without a header: ``_classes.csv`` of Roboflow;
    * ``name:R,G,B:parts:actions``, with comments ``# …``: ``labelmap.txt`` of CVAT and of PASCAL VOC.

    Raises:
        UserError: The file cannot be read; the label values are not 0, 1, …; a line is of another format, a comment or
            a header where the format has none; or a name is invalid (:func:`check_class_names`).
    """
    where = f'class list {path}'
    try:
        lines = read_lines(path)
    except OSError as error:
        raise UserError(f'{where} cannot be read ({error.strerror}); write one class name per line') from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b'\n') + 1
        raise UserError(
            f'{where} cannot be read (line {line} is not {error.encoding.upper()} text: byte '
            f'0x{error.object[error.start]:02x}); save it in the encoding UTF-8'
        ) from error
    if any(_LABELMAP.fullmatch(line) for line in lines):
        entries = [(line, _LABELMAP.fullmatch(line)) for line in lines if not line.startswith('#')]
    else:
        rows = _rows(lines, where)
        entries = [(row, _COLOURED.fullmatch(row)) for row in rows]
        if not any(match for _, match in entries):
            return check_class_names(rows, where=where), None
    bare = [line for line, match in entries if not match or match[2] is None]
    if bare and (len(bare) < len(entries) or any(match is None for _, match in entries)):
        raise UserError(f'{str(path)!r}: line {bare[0]!r} has no colour; write `name R G B`')
    names = check_class_names([match[1].strip() for _, match in entries if match], where=where)
    if bare:
        return names, None
    return names, [(int(match[2]), int(match[3]), int(match[4])) for _, match in entries if match]


def check_class_names(names: Sequence[str], *, where: str | None = None) -> list[str]:
    """The ``names``, if they can be the classes of a data set; ``where`` is their place, for the message.

    Raises:
        UserError: There is none, or one is empty, very long, has control characters or occurs twice.
    """
    names = [str(name) for name in names]
    where = where or f'classes={str(names)[:200]}'
    if not names:
        raise UserError(f'{where} is empty; write one class name per label value, 0 first')
    for index, name in enumerate(names):
        if not name.strip():
            raise UserError(f'{where} has no name for class {index}; give each class a name')
        if len(name) > _MAX_CHARACTERS:
            raise UserError(f'class name {name[:40]!r}… in {where[:200]} has {len(name)} characters; shorten it')
        if any(ord(character) < 32 and character != '\t' or character in '\x7f\ufffd' for character in name):
            raise UserError(f'class name {name!r} in {where} is not plain text; save the names in the encoding UTF-8')
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f'{where} names {twice[0]!r} twice; give each class one name')
    return names


def _rows(lines: Sequence[str], where: str) -> list[str]:
    """The lines of a list without header and label values, in the order of the values."""
    if not lines:
        return []
    words = re.split(r'[\s,;:_]+', lines[0].lower())
    header = len(lines) > 1 and all(map(_HEADER.fullmatch, words))
    rows = lines[1:] if header else lines
    comment = next((line for line in rows if line.startswith('#')), None)
    if comment is not None:
        raise UserError(f'{where}: line {comment[:80]!r} is a comment and not a class; remove it')
    matches = [match for match in map(_NUMBERED.fullmatch, rows) if match]
    if len(matches) == len(rows) and (len(rows) > 1 or header or matches[0][2].strip()):
        numbered = sorted((int(match[1]), match[3]) for match in matches)
        values = [value for value, _ in numbered]
        if values != list(range(len(rows))):
            known = ', '.join(map(str, values[:5])) + (', …' if len(values) > 5 else '')
            raise UserError(
                f'{where} numbers its classes {known}, but label values count 0, 1, 2, … without gaps; list a class '
                'for each (0 is often "background"), or number from 0 and set reduce_zero_label=True if 0 means none'
            )
        return [row for _, row in numbered]
    if header and not _COLOURED.fullmatch(rows[0]):
        raise UserError(f'{where}: line {lines[0][:80]!r} is a header and not a class; remove it')
    return list(rows)
