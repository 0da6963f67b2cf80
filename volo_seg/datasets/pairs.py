"""Pair the images and label images of two folders by their relative names without suffix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


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

    Hidden files are left out. With ``any_case``, image suffixes match in any case. A folder that does not exist is
    empty.
    """
    found, masks = Pairing(), {}
    if mask_dir is not None:
        stems = ((_stem(name, (mask_suffix,), False), name) for name in _names(mask_dir))
        masks = {stem: str(mask_dir / name) for stem, name in stems if stem is not None}
    images: dict[str, str] = {}
    for name in _names(image_dir):
        stem = _stem(name, image_suffixes, any_case)
        if stem is None:
            continue
        path = str(image_dir / name)
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


def _names(folder: Path) -> list[str]:
    """The sorted relative paths of all files below ``folder`` but hidden ones; links to folders are followed."""
    names: list[str] = []
    for root, _, files in os.walk(folder, followlinks=True):
        below = Path(root).relative_to(folder)
        names += [(below / name).as_posix() for name in files if not name.startswith('.')]
    return sorted(names)


def _stem(name: str, suffixes: Sequence[str], any_case: bool) -> str | None:
    lower = name.lower() if any_case else name
    lengths = [len(suffix) for suffix in suffixes if lower.endswith(suffix.lower() if any_case else suffix)]
    return name[: len(name) - max(lengths)] if lengths else None
