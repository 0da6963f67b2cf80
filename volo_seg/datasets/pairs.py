"""Pair images and label images: of two folders by their names, by a template of paths, or by a list."""

from __future__ import annotations

import csv
import difflib
import json
import os
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volo_seg.errors import UserError
from volo_seg.io import find_files, read_lines

MOST_HINTS = 100
"""Most missing label images whose names are compared with those of other files."""


@dataclass
class Pairing:
    """The pairs of two folders and the files without a partner, as paths in the order of the images."""

    pairs: list[tuple[str, Any]] = field(default_factory=list)  # image, label image or None
    unlabelled: list[tuple[str, str]] = field(default_factory=list)  # image, the label image that is missing
    unused: list[str] = field(default_factory=list)  # label images without an image
    by_suffix: bool = False  # whether names of label images are made with a suffix
    twins: list[tuple[str, str]] = field(default_factory=list)  # images that would share a label image


def pair_folders(
    image_dir: Path, mask_dir: Path | None, *, image_suffixes: Sequence[str], mask_suffix: str, any_case: bool = False
) -> Pairing:
    """Pair each image with the label image of the same relative name, or with None if ``mask_dir`` is None.

    See :func:`.find_files` for the search. With ``any_case``, image suffixes match in any case.
    """
    found, masks = Pairing(by_suffix=True), {}
    if mask_dir is not None:
        paths = find_files(mask_dir, suffixes=(mask_suffix,), any_case=False)
        masks = {_stem(path.relative_to(mask_dir), (mask_suffix,)): str(path) for path in paths}
    images: dict[str, str] = {}
    for file in find_files(image_dir, suffixes=image_suffixes, any_case=any_case):
        stem, path = _stem(file.relative_to(image_dir), image_suffixes), str(file)
        if stem in images:
            found.twins.append((images[stem], path))
            continue
        images[stem] = path
        if mask_dir is None or stem in masks:
            found.pairs.append((path, masks.get(stem)))
        else:
            found.unlabelled.append((path, str(mask_dir / (stem + mask_suffix))))
    found.unused = [path for stem, path in masks.items() if stem not in images]
    return found


def pair_by_template(image_dir: Path, template: str, *, root: Path, image_suffixes: Sequence[str]) -> Pairing:
    """Pair each image below ``image_dir`` with the label image that ``template`` names.

    Args:
        image_dir: Folder of the images; label images in it are not taken for images.
        template: Path with ``{stem}``, the image's name without suffix, and ``{folder}``, its folder; below ``root``.
        root: Folder of the data set.
        image_suffixes: Ends of image names, in any case.

    Raises:
        UserError: The template has other fields, or no ``{stem}``.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError:
        fields = []
    if 'stem' not in fields or set(fields) - {'stem', 'folder'}:
        raise UserError(
            f'mask_template={template!r} is not a path with {{stem}} and {{folder}}, such as '
            "'{folder}/../labels/{stem}_mask.png'"
        )
    images = find_files(image_dir, suffixes=image_suffixes)
    masks = {}
    for path in images:
        stem = _stem(Path(path.name), image_suffixes)
        masks[str(path)] = os.path.normpath(root / template.format(stem=stem, folder=path.parent.absolute()))
    labels, found = {os.path.abspath(mask) for mask in masks.values()}, Pairing()
    for image, mask in masks.items():
        if os.path.abspath(image) not in labels:
            (found.pairs if os.path.exists(mask) else found.unlabelled).append((image, mask))
    return found


def read_pairs(path: Path, *, root: Path) -> Pairing:
    """Read a list of pairs: CSV with the header ``image,mask``, or JSONL with these keys; paths relative to ``root``.

    Raises:
        UserError: The list cannot be read, or an image does not exist.
    """
    form = 'write a header "image,mask" and a pair a line' if path.suffix == '.csv' else 'write {"image": …, "mask": …}'
    try:
        lines = read_lines(path, most_bytes=2**28)
        rows = list(csv.DictReader(lines)) if path.suffix == '.csv' else [json.loads(line) for line in lines]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f'list {str(path)!r} cannot be read ({error}); {form}') from error
    found, seen = Pairing(), set()
    for number, row in enumerate(rows, 1):
        image, mask = (row.get(key) if isinstance(row, dict) else None for key in ('image', 'mask'))
        if not (isinstance(image, str) and isinstance(mask, str) and image and mask):
            raise UserError(f'list {str(path)!r}: pair {number} has no image or no mask; {form}')
        image, mask = str(root / image), str(root / mask)
        if not os.path.exists(image):
            raise UserError(f'list {str(path)!r}: image {image!r} of pair {number} does not exist; correct the path')
        if image in seen:
            raise UserError(f'list {str(path)!r}: image {image!r} of pair {number} is listed twice; remove one')
        seen.add(image)
        (found.pairs if os.path.exists(mask) else found.unlabelled).append((image, mask))
    return found


def suffix_hint(pairing: Pairing, *, suffix: str) -> str:
    """The end of a message about missing label images: the suffix that would match, or the nearest names there.

    Empty if ``pairing`` was not made with a suffix.

    Args:
        pairing: With images whose label images do not exist.
        suffix: With which the label images should end.
    """
    if not pairing.by_suffix:
        return ''
    unlabelled = pairing.unlabelled
    images = {image for image, _ in unlabelled}
    names: dict[str, list[str]] = {}
    ends: dict[str, list[str]] = {}
    for _, mask in unlabelled[:MOST_HINTS]:
        folder, name = os.path.split(mask)
        if folder not in names:
            there = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            names[folder] = [other for other in there if os.path.join(folder, other) not in images]
        stem = name.removesuffix(suffix)
        for other in names[folder]:
            end = other[len(stem) :]
            if other.startswith(stem) and end and not end[0].isalnum():
                ends.setdefault(end, []).append(other)
    if ends:
        end = max(ends, key=lambda end: len(ends[end]))
        return f'; {ends[end][0]!r} is there, and with seg_map_suffix={end!r} it would match'
    folder, name = os.path.split(unlabelled[0][1])
    near = difflib.get_close_matches(name, names[folder], n=3, cutoff=0.0)
    return (
        f'; the nearest names there are {", ".join(map(repr, near))}' if near else f'; {folder!r} holds no label image'
    )


def _stem(path: Path, suffixes: Sequence[str]) -> str:
    """``path`` without the longest of ``suffixes`` with which it ends, in any case."""
    name = path.as_posix()
    return name[: -max(len(suffix) for suffix in suffixes if name.lower().endswith(suffix.lower()))]
