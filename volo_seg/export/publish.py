"""Publish a trained model: a folder that others load without running any code of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from volo_seg.checkpoints import load_file, save_file
from volo_seg.config.load import load_config
from volo_seg.errors import UserError
from volo_seg.export.model_card import write_card
from volo_seg.inference.predictor import Predictor
from volo_seg.inference.pretrained import CARD, CONFIG, METRICS, WEIGHTS

OWN_MACHINE = ('work_dir', 'load_from', 'resume', 'launcher', 'vis_backends', 'visualizer', 'variants')
"""Settings that are about the machine that trained, or about other models."""


def publish(config: str, checkpoint: str | Path, folder: str | Path, *, metrics: str | Path | None = None) -> Path:
    """Write the model of ``config`` and ``checkpoint`` to the new ``folder``, which appears when it is complete.

    It holds the weights as safetensors (the averaged ones of a checkpoint with EMA), the config as plain values,
    class names and colours, ``metrics`` (the ``metrics.json`` of ``volo-seg test``) and a model card. Before it
    appears it is loaded again, and must give the labels that the checkpoint gives.

    Raises:
        UserError: The parts do not fit, ``folder`` is there and not empty, or the disk refuses it.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f'{str(folder)!r} is there already: give the name of a new folder')
    scores = read_metrics(metrics) if metrics else None
    loaded = load_config(config)
    predictor = Predictor(loaded.copy(), checkpoint, device='cpu')
    if scores is not None:
        check_metrics(scores, predictor.classes, name=str(metrics))
    meta = load_file(checkpoint).get('meta') or {}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    except OSError as error:
        raise UserError(f'{str(folder)!r} cannot be written ({error.strerror}): give another folder') from error
    try:
        part.chmod(0o755)
        _fill(part, loaded, predictor, meta=meta, scores=scores, name=folder.name)
        check_same(predictor, Predictor.from_pretrained(part, device='cpu'))
        os.replace(part, folder)
    except OSError as error:
        raise UserError(f'{str(folder)!r} cannot be written ({error.strerror}): give another folder') from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _fill(
    part: Path,
    config: Config,
    predictor: Predictor,
    *,
    meta: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    name: str,
) -> None:
    content = plain_config(config)
    content['classes'] = list(predictor.classes)
    content['palette'] = np.asarray(predictor.palette).tolist()
    (part / CONFIG).write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    save_file(predictor.model.state_dict(), part / WEIGHTS)
    if scores is not None:
        (part / METRICS).write_text(json.dumps(scores, indent=1) + '\n', encoding='utf-8')
    card = write_card(name, config, predictor.classes, predictor.model, meta=meta, scores=scores)
    (part / CARD).write_text(card, encoding='utf-8')


def plain_config(config: Config) -> dict[str, Any]:
    """``config`` as values that JSON knows, without what is about one machine.

    Raises:
        UserError: It holds something else, such as a class instead of its name.
    """
    content = {key: value for key, value in config.to_dict().items() if key not in OWN_MACHINE}
    for split in ('train', 'val', 'test'):
        dataset = (content.get(f'{split}_dataloader') or {}).get('dataset') or {}
        root = dataset.get('data_root')
        if root and Path(root).is_absolute():
            dataset['data_root'] = str(Path('data', Path(root).name))
    if Path(str(content.get('data_root') or '')).is_absolute():
        content['data_root'] = str(Path('data', Path(content['data_root']).name))
    try:
        return json.loads(json.dumps(content))
    except TypeError as error:
        raise UserError(f'the config holds what JSON cannot ({error}): name classes by type strings') from error


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Read the ``metrics.json`` of an evaluation.

    Raises:
        UserError: It is missing, or something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'metrics {str(path)!r} cannot be read: {error}') from error
    if not isinstance(content, dict) or not {'mIoU', 'definition_text', 'images', 'classes'} <= set(content):
        raise UserError(f'metrics {str(path)!r} is no metrics.json of volo-seg test')
    return content


def check_metrics(scores: Mapping[str, Any], classes: tuple[str, ...], *, name: str) -> None:
    """Refuse metrics of other classes.

    Raises:
        UserError: They are.
    """
    theirs = [entry['class'] for entry in scores['classes']]
    if theirs != list(classes):
        raise UserError(f'metrics {name!r} are about {len(theirs)} other classes than this model has ({len(classes)})')


def check_same(trained: Predictor, published: Predictor) -> None:
    """Compare the labels of two predictors on an image of noise.

    Raises:
        RuntimeError: They differ.
    """
    image = np.random.default_rng(0).integers(0, 256, size=(96, 131, 3), dtype=np.uint8)
    if not np.array_equal(trained(image).labels, published(image).labels):
        raise RuntimeError('the published model gives other labels than the checkpoint')
