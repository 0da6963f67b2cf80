"""Published models, a folder or one file, which load without running any code of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from mmengine.config import Config

from volo_seg import __version__
from volo_seg.checkpoints import check_destination, load_file, save_file
from volo_seg.config.load import datasets, load_config
from volo_seg.errors import UserError
from volo_seg.inference.predictor import Predictor
from volo_seg.inference.pretrained import CARD, CONFIG, METRICS, WEIGHTS
from volo_seg.io import atomic_path, atomic_write, check_regular, check_writable

OWN_MACHINE = ('work_dir', 'load_from', 'resume', 'launcher', 'vis_backends', 'visualizer', 'variants')
"""Top-level keys of a config about the training machine or about other models; they are not published."""


def publish(config: str, checkpoint: str | Path, folder: str | Path, *, metrics: str | Path | None = None) -> Path:
    """Write the model of ``config`` and ``checkpoint`` to the new ``folder``, which appears when it is complete.

    The folder holds the weights as safetensors (those of the EMA if the checkpoint has one), the config as plain
    values with class names and colours, ``metrics`` (the ``metrics.json`` of ``volo-seg test``) and a model card. The
    published model is loaded and must give the labels of the checkpoint before the folder appears.

    Raises:
        UserError: Config, checkpoint and metrics do not fit, ``folder`` exists and is not empty, or cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f'{str(folder)!r} exists already: give the name of a new folder')
    check_writable(folder)
    scores = read_metrics(metrics) if metrics else None
    loaded = load_config(config)
    predictor = Predictor(loaded.copy(), checkpoint, device='cpu')
    if scores is not None:
        check_metrics(scores, predictor.classes, name=str(metrics))
    meta = load_file(checkpoint).get('meta') or {}
    with atomic_path(folder) as part:
        part.mkdir()
        _fill(part, loaded, predictor, meta=meta, scores=scores, name=folder.name)
        check_same(predictor, Predictor.from_pretrained(part, device='cpu'))
    return folder


def publish_file(
    config: str,
    checkpoint: str | Path,
    file: str | Path,
    *,
    metrics: str | Path | None = None,
    notes: str | Path | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the model of ``config`` and ``checkpoint`` to one safetensors file, with the model card beside it (.md).

    The config as plain values, class names and colours are in the metadata of the file, so that
    ``Predictor.from_checkpoint(file)`` and every command need nothing else. The file is loaded and must give the labels
    of the model before it appears.

    Args:
        config: Config file, or the name of a shipped config.
        checkpoint: Trained weights.
        file: The file to write.
        metrics: ``metrics.json`` of ``volo-seg test``, for the card.
        notes: A text file in Markdown, for the card.
        half: Whether matrices and kernels are rounded to float16; vectors keep their type.
        overwrite: Whether an existing file is replaced.

    Raises:
        UserError: Config, checkpoint and metrics do not fit, or ``file`` exists or cannot be written.
    """
    path = check_destination(file, overwrite=overwrite)
    scores = read_metrics(metrics) if metrics else None
    loaded = load_config(config)
    predictor = Predictor(loaded.copy(), checkpoint, device='cpu')
    if scores is not None:
        check_metrics(scores, predictor.classes, name=str(metrics))
    state = predictor.model.state_dict()
    if half:
        state = {
            key: value.half() if value.is_floating_point() and value.ndim > 1 else value for key, value in state.items()
        }
        predictor.model.load_state_dict(state)  # what is compared below
    meta = load_file(checkpoint).get('meta') or {}
    classes, palette = list(predictor.classes), np.asarray(predictor.palette).tolist()
    metadata = {
        'cfg': ''.join(f'{key} = {value!r}\n' for key, value in plain_config(loaded).items()),
        'dataset_meta': json.dumps({'classes': classes, 'palette': palette}),
        **{key: str(meta[key]) for key in ('iter', 'seed') if meta.get(key) is not None},
    }
    card = model_card(path.stem, loaded, predictor, meta=meta, scores=scores, file=path.name, notes=notes)
    with atomic_path(path, suffix=path.suffix) as part:
        save_file(state, part, metadata=metadata)
        check_same(predictor, Predictor.from_checkpoint(part, device='cpu'))
    atomic_write(path.with_suffix('.md'), card.encode())
    return path


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
    (part / CARD).write_text(model_card(name, config, predictor, meta=meta, scores=scores), encoding='utf-8')


def model_card(
    name: str,
    config: Config,
    predictor: Predictor,
    *,
    meta: Mapping[str, Any],
    scores: Mapping[str, Any] | None,
    file: str | None = None,
    notes: str | Path | None = None,
) -> str:
    """Render the card of a published folder or ``file``: Markdown with the front matter that model hubs read."""
    backbone = config.model.backbone
    optimizer = (config.get('optim_wrapper') or {}).get('optimizer') or {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    return environment.get_template('model_card.md.j2').render(
        name=name,
        file=file,
        notes=Path(notes).read_text(encoding='utf-8').strip() if notes else '',
        version=__version__,
        classes=predictor.classes,
        scores=scores,
        backbone=f'{backbone.type} ({backbone.arch})' if isinstance(backbone.get('arch'), str) else backbone.type,
        head=config.model.decode_head.type,
        parameters=sum(p.numel() for p in predictor.model.parameters()) / 1e6,
        training={
            'iterations': meta.get('iter'),
            'batch size of a process': (config.get('train_dataloader') or {}).get('batch_size'),
            'crop (height, width)': config.get('crop_size'),
            'optimizer': ', '.join(f'{k} {v}' for k, v in optimizer.items() if k in ('type', 'lr', 'weight_decay')),
            'seed': meta.get('seed'),
            'finished': meta.get('time'),
            'config': config.filename and str(config.filename).replace('\\', '/').rsplit('/', 1)[-1],
        },
    )


def plain_config(config: Config) -> dict[str, Any]:
    """``config`` as JSON values, without keys and absolute paths of the training machine.

    Raises:
        UserError: A value is not JSON, such as a class instead of its name.
    """
    content = {key: value for key, value in config.to_dict().items() if key not in OWN_MACHINE}
    for split in ('train', 'val', 'test'):
        loader = content.get(f'{split}_dataloader') or {}
        for _, dataset in datasets(loader.get('dataset') or {}, split):
            root = dataset.get('data_root')
            if root and Path(root).is_absolute():
                dataset['data_root'] = str(Path('data', Path(root).name))
    if Path(str(content.get('data_root') or '')).is_absolute():
        content['data_root'] = str(Path('data', Path(content['data_root']).name))
    try:
        return json.loads(json.dumps(content))
    except TypeError as error:
        raise UserError(f'the config holds a value that JSON cannot ({error}): give types as strings') from error


def read_metrics(path: str | Path) -> dict[str, Any]:
    """Read the ``metrics.json`` of an evaluation.

    Raises:
        UserError: It is missing, or not a ``metrics.json``.
    """
    try:
        check_regular(path)
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(
            f'metrics {str(path)!r} cannot be read ({error}): give a metrics.json of volo-seg test'
        ) from error
    if not isinstance(content, dict) or not {'mIoU', 'definition_text', 'images', 'classes'} <= set(content):
        raise UserError(f'metrics {str(path)!r} is not a metrics.json of volo-seg test: give that file')
    return content


def check_metrics(scores: Mapping[str, Any], classes: tuple[str, ...], *, name: str) -> None:
    """Raise UserError if ``scores`` are of other classes than ``classes``."""
    theirs = [entry['class'] for entry in scores['classes']]
    if theirs != list(classes):
        raise UserError(
            f'metrics {name!r} are of {len(theirs)} other classes than the {len(classes)} of this model: '
            'evaluate this checkpoint'
        )


def check_same(trained: Predictor, published: Predictor) -> None:
    """Compare the labels of two predictors on an image of noise.

    Raises:
        RuntimeError: They differ.
    """
    image = np.random.default_rng(0).integers(0, 256, size=(96, 131, 3), dtype=np.uint8)
    if not np.array_equal(trained(image).labels, published(image).labels):
        raise RuntimeError('the published model gives other labels than the checkpoint')
