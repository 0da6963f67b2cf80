"""Pair the images and label images of two folders by their relative names without suffix."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volo_seg.io import find_files

MOST_HINTS = 100
"""Most missing label images whose names are compared with those of other files."""


@dataclass
class Pairing:
    """The pairs of two folders and the files without a partner, as paths in the order of the images."""

    pairs: list[tuple[str, str | None]] = field(default_factory=list)
    unlabelled: list[tuple[str, str]] = field(default_factory=list)  # image, the label image that is missing
    unused: list[str] = field(default_factory=list)  # label images without an image
    twins: list[tuple[str, str]] = field(default_factory=list)  # images that would share a label image


def pair_folders(
    image_dir: Path, mask_dir: Path | None, *, image_suffixes: Sequence[str], mask_suffix: str, any_case: bool = False
) -> Pairing:
    """Pair each image with the label image of the same relative name, or with None if ``mask_dir`` is None.

    See :func:`.find_files` for the search. With ``any_case``, image suffixes match in any case.
    """
    found, masks = Pairing(), {}
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


def suffix_hint(unlabelled: Sequence[tuple[str, str]], *, suffix: str) -> str:
    """The end of a message about missing label images: the suffix that would match, or the nearest names there.

    Args:
        unlabelled: Images and their label images, which do not exist.
        suffix: With which the label images should end.
    """
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
