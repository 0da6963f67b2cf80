"""Data sets in the layout of Hugging Face ``datasets``: Parquet or Arrow files, or an image folder with metadata."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from volo_seg.datasets.importers.coco import mapped_labels
from volo_seg.datasets.importers.records import IGNORED, UNLABELLED, Collection, Item, LabelMap, Tree, get, split_of
from volo_seg.errors import UserError

_METADATA = ('metadata.jsonl', 'metadata.csv')
_IMAGE = ('image', 'img', 'pixel_values', 'file_name', 'image_file_name')


def recognise(tree: Tree) -> str:
    found = _tables(tree) or tree.named(*_METADATA)
    return f'{found[0]} is a file of the layout of datasets' if found else ''


def read(tree: Tree) -> Collection:
    """Read pairs of an image and a label image; ``id2label.json`` or the given classes name the label values.

    Raises:
        UserError: A file is malformed, or columns or class names are missing.
    """
    found = Collection()
    index = _names(tree, found)
    if not recognise(tree):
        raise UserError(f'{str(tree.root)!r} has no .parquet, .arrow or metadata file; check the folder')
    for name in _tables(tree):
        for number, (group, column, label) in enumerate(_rows(tree.root / name)):
            where = f'{name}: row {number}'
            cell = functools.partial(read_cell, tree.root / name, *group)
            draw = (
                functools.partial(_cell_labels, functools.partial(cell, label[0]), index, where) if label[1] else None
            )
            stem = f'{PurePosixPath(name).stem}-{number:06d}.png'
            image = functools.partial(cell, column)
            found.items.append(Item(stem, image, where, split_of(name), label_map=draw))
    for name in [] if found.items else tree.named(*_METADATA):
        folder = PurePosixPath(name).parent
        for number, row in enumerate(_metadata(tree, name)):
            where = f'{name}: row {number}'
            image_key = next((key for key in _IMAGE if key in row), 'file_name')
            label_keys = [key for key in row if key.endswith('file_name') and key != image_key]
            path = tree.image(str(folder / get(row, image_key, str, where)), where=name)
            if len(label_keys) != 1:
                raise UserError(f'{where} has {len(label_keys)} columns *_file_name beside {image_key}; name one mask')
            mask = get(row, label_keys[0], (str, type(None)), where)
            draw = None
            if mask:
                file = tree.image(str(folder / mask), where=name)
                draw = functools.partial(mapped_labels, file, index)
            split = split_of(name) or split_of(path.relative_to(tree.root).as_posix())
            found.items.append(Item(path.name, path, where, split, label_map=draw))
    return found


def read_cell(path: Path, group: int, row: int, column: str) -> bytes:
    """The bytes of an image in a table.

    Raises:
        UserError: The table only has its path.
    """
    value = _group(path, group, column)[row].as_py()
    content = value.get('bytes') if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise UserError(f'{path.name}: row {row} of group {group} has no bytes in {column!r}; embed the images')
    return content


def _cell_labels(cell: Any, index: LabelMap, where: str) -> LabelMap:
    return mapped_labels(Path(where), index, content=cell())


def _names(tree: Tree, found: Collection) -> LabelMap:
    """Read the class names; return the class index of each label value."""
    lists = tree.named('id2label.json')
    names: dict[int, str] = dict(enumerate(tree.names or ()))
    if lists:
        try:
            names = {int(number): str(name) for number, name in tree.json(lists[0]).items()}
        except (ValueError, AttributeError) as error:
            raise UserError(f'{lists[0]} is not an object of "id": "name"; write it so') from error
    if not names:
        raise UserError(f'{str(tree.root)!r} has no id2label.json with the class names; add it, or give --classes')
    index = np.full(256, -3, np.int32)
    index[0], index[255] = UNLABELLED, IGNORED
    for number, name in sorted(names.items()):
        if not 0 <= number < 255:
            raise UserError(f'{name!r} has the id {number}, and label images hold 0..254; renumber the classes')
        found.add_class(name, number)
        index[number] = len(found.classes) - 1
    return index


def _tables(tree: Tree) -> list[str]:
    return [name for name in tree.ending('.parquet', '.arrow') if not PurePosixPath(name).name.startswith('cache-')]


def _open(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise UserError('Parquet files need pyarrow: pip install "volo-seg[import]"') from error
    try:
        if path.suffix == '.parquet':
            return parquet.ParquetFile(path)
        return ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f'{str(path)!r} cannot be read ({" ".join(str(error).split())[:100]}); export it again'
        ) from error


@functools.lru_cache(maxsize=4)
def _group(path: Path, number: int, column: str) -> Any:
    table = _open(path)
    return table.read_row_group(number, [column])[column] if path.suffix == '.parquet' else table[column]


def _rows(path: Path) -> Iterator[tuple[tuple[int, int], str, tuple[str, bool]]]:
    """For each row: (group, row), the image column, and the label column with whether it has a value."""
    table = _open(path)
    schema = table.schema_arrow if path.suffix == '.parquet' else table.schema
    columns = [field.name for field in schema if {'bytes', 'path'} <= {part.name for part in _parts(field.type)}]
    image = next((name for name in _IMAGE if name in columns), '')
    labels = [name for name in columns if name != image]
    if not image or len(labels) != 1:
        raise UserError(f'{path.name} has the image columns {columns}; one image and one label column are needed')
    for group in range(table.num_row_groups if path.suffix == '.parquet' else 1):
        for row, value in enumerate(_group(path, group, labels[0])):
            yield (group, row), image, (labels[0], value.is_valid)


def _parts(kind: Any) -> Iterator[Any]:
    return (kind.field(place) for place in range(kind.num_fields))


def _metadata(tree: Tree, name: str) -> list[Any]:
    lines = tree.lines(name)
    if name.endswith('.csv'):
        return list(csv.DictReader(lines))
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f'{name} has a line that is not JSON ({error}); write it again') from error
