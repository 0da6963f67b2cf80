"""Write Toyscapes in the layout of Cityscapes; every file is written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from volo_seg.datasets.cityscapes_labels import id_to_train_id
from volo_seg.datasets.inspection.processes import map_in_processes
from volo_seg.datasets.toyscapes.camera import Array
from volo_seg.datasets.toyscapes.scene import Scene, check_request, generate_scene
from volo_seg.errors import UserError
from volo_seg.io import atomic_write
from volo_seg.label_png import encode_labels

VERSION = 1  # increases when the same seed and style give other scenes
MARKER = 'toyscapes.json'
CITIES = {'train': ('brickford', 'lindenau', 'tramstadt'), 'val': ('lanternburg',)}
Progress = Callable[[Iterable[None], int], Iterable[None]]


def scene_files(root: Path, split: str, index: int) -> dict[str, Path]:
    """Return the six files of one scene: image, labelIds, labelTrainIds, color, instanceIds, polygons."""
    city = CITIES[split][index % len(CITIES[split])]
    name = f'{city}_{index:06d}_000019'
    truth = root / 'gtFine' / split / city
    return {
        'image': root / 'leftImg8bit' / split / city / f'{name}_leftImg8bit.png',
        'labelIds': truth / f'{name}_gtFine_labelIds.png',
        'labelTrainIds': truth / f'{name}_gtFine_labelTrainIds.png',
        'color': truth / f'{name}_gtFine_color.png',
        'instanceIds': truth / f'{name}_gtFine_instanceIds.png',
        'polygons': truth / f'{name}_gtFine_polygons.json',
    }


def write_toyscapes(
    root: str | os.PathLike[str],
    *,
    train: int,
    val: int,
    size: tuple[int, int],
    seed: int,
    style: str = 'random',
    nproc: int = 1,
    progress: Progress | None = None,
) -> int:
    """Write the missing scenes of a data set below ``root``, and return their number. Existing scenes are kept.

    Args:
        root: A new or empty folder, or a Toyscapes of the same size, seed and style.
        train: Number of training scenes.
        val: Number of validation scenes.
        size: (H, W) in pixels.
        seed: Determines the scenes.
        style: ``random`` or ``plain``, see ``generate_scene``.
        nproc: Number of processes.
        progress: Wraps the iteration over the finished scenes; its second argument is their number.

    Raises:
        UserError: Counts, size, style or ``nproc`` are out of range, or ``root`` has other content or settings.
    """
    folder = Path(root)
    _check(train, val, size, seed, style, nproc)
    _claim(folder, size, seed, style)
    wanted = [('train', i) for i in range(train)] + [('val', i) for i in range(val)]
    jobs = [job for job in wanted if not all(path.is_file() for path in scene_files(folder, *job).values())]
    for folders in {path.parent for job in jobs for path in scene_files(folder, *job).values()}:
        _make_folder(folders)
    done = map_in_processes(partial(_make, folder, size, seed, style), jobs, processes=nproc)
    for _ in progress(done, len(jobs)) if progress and jobs else done:
        pass
    return len(jobs)


def _check(train: int, val: int, size: tuple[int, int], seed: int, style: str, nproc: int) -> None:
    check_request(seed, 0, 'train', size, style)
    if train < 0 or val < 0 or train + val == 0:
        raise UserError(f'train={train} and val={val} scenes asked; give counts of 0 or more, not both 0')
    if max(train, val) > 1_000_000:
        raise UserError(f'train={train} and val={val} scenes asked; file names allow 1000000 per split')
    if nproc < 1:
        raise UserError(f'nproc={nproc} processes asked; give 1 or more')


def _claim(folder: Path, size: tuple[int, int], seed: int, style: str) -> None:
    """Write the marker file into an empty folder, or check that the folder is a Toyscapes of the same settings.

    A marker without a style is one of the plain style.
    """
    settings = {'version': VERSION, 'seed': int(seed), 'height': int(size[0]), 'width': int(size[1]), 'style': style}
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise UserError(f'{folder} is a file; name a folder for the data set')
    if marker.is_file():
        try:
            found = json.loads(marker.read_text(encoding='utf-8'))
        except (ValueError, OSError):
            found = None
        if isinstance(found, dict):
            found.setdefault('style', 'plain')
        if found != settings:
            asked = ', '.join(f'{key} {value}' for key, value in settings.items())
            known = found.items() if isinstance(found, dict) else [('unreadable', '')]
            actual = ', '.join(f'{key} {value}'.strip() for key, value in known)
            raise UserError(f'{marker} has other settings ({actual}; asked: {asked}); name a new folder')
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f'{folder} is not empty and holds no {MARKER}; name an empty or a new folder')
    _make_folder(folder)
    atomic_write(marker, (json.dumps(settings) + '\n').encode())


def _make(folder: Path, size: tuple[int, int], seed: int, style: str, job: tuple[str, int]) -> None:
    split, index = job
    files = scene_files(folder, split, index)
    scene = generate_scene(seed, index, split=split, size=size, style=style)
    atomic_write(files['image'], _png(scene.image))
    atomic_write(files['labelIds'], encode_labels(scene.label_ids))
    atomic_write(files['labelTrainIds'], encode_labels(id_to_train_id()[scene.label_ids]))
    atomic_write(files['color'], _png(cv2.cvtColor(scene.color, cv2.COLOR_RGB2BGRA)))
    atomic_write(files['instanceIds'], encode_labels(scene.instance_ids))
    atomic_write(files['polygons'], polygons_json(scene).encode())


def polygons_json(scene: Scene) -> str:
    """Return the text of ``_gtFine_polygons.json``: image size, and objects from back to front."""
    height, width = scene.label_ids.shape
    objects = [{'label': label, 'polygon': outline.tolist()} for label, outline in scene.polygons]
    return json.dumps({'imgHeight': height, 'imgWidth': width, 'objects': objects})


def _png(image: Array) -> bytes:
    done, data = cv2.imencode('.png', np.ascontiguousarray(image))
    assert done
    return data.tobytes()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {folder}: {error.strerror}; choose another one') from error
