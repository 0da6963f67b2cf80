"""A published folder is the model: the same labels, nothing executed, nothing of the machine that trained."""

import json
import re
import resource
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from volo_seg.checkpoints import load_file
from volo_seg.commands import run
from volo_seg.config.load import load_config, set_data_root
from volo_seg.errors import UserError
from volo_seg.export.publish import plain_config, publish
from volo_seg.inference import Predictor
from volo_seg.inference.pretrained import find_pretrained, read_pretrained

CONFIG = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
CLASSES = 19


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A checkpoint file with random weights, its scores, and the folder published from both."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    import volo_seg.models  # noqa: F401

    init_default_scope('mmseg')
    folder = tmp_path_factory.mktemp('trained')
    torch.manual_seed(3)
    config = load_config(CONFIG)
    config.model.decode_head.num_classes = config.model.auxiliary_head.num_classes = CLASSES
    model = MODELS.build(config.model)
    model.init_weights()
    checkpoint = folder / 'iter_7.pth'
    torch.save({'meta': {'iter': 7, 'seed': 11}, 'state_dict': model.state_dict()}, checkpoint)
    predictor = Predictor(CONFIG, checkpoint, device='cpu')
    rows = [{'class': name, 'IoU': 10.0 + i} for i, name in enumerate(predictor.classes)]
    rows[3]['IoU'] = None
    scores = {'mIoU': 20.125, 'mAcc': 30.0, 'aAcc': 40.0, 'images': 5, 'definition_text': 'of a test', 'classes': rows}
    metrics = folder / 'metrics.json'
    metrics.write_text(json.dumps(scores))
    published = publish(CONFIG, checkpoint, folder / 'my-model', metrics=metrics)
    return SimpleNamespace(folder=folder, checkpoint=checkpoint, metrics=metrics, published=published)


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the published folder, to be damaged."""
    copy = tmp_path / 'copy'
    copy.mkdir()
    for path in trained.published.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_gives_the_same_results(trained):
    image = np.random.default_rng(1).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    ours = Predictor(CONFIG, trained.checkpoint, device='cpu', probabilities=True)
    theirs = Predictor.from_pretrained(trained.published, device='cpu', probabilities=True)
    assert np.array_equal(ours(image).labels, theirs(image).labels)
    assert np.array_equal(ours(image).probabilities, theirs(image).probabilities)
    assert theirs.classes == ours.classes and np.array_equal(theirs.palette, ours.palette)


def test_folder(trained):
    assert sorted(p.name for p in trained.published.iterdir()) == [
        'README.md',
        'config.json',
        'metrics.json',
        'model.safetensors',
    ]
    assert not [p for p in trained.folder.iterdir() if p.name.startswith('.')], 'a part was left behind'
    card = (trained.published / 'README.md').read_text()
    for told in ('value: 20.12', '| mIoU | 20.12 |', 'of a test', '- iterations: 7', '- seed: 11', "('my-model')"):
        assert told in card, told
    assert '| road | 10.0 |' in card and '| wall | - |' in card
    assert str(trained.folder) not in card + (trained.published / 'config.json').read_text()


def test_config_is_good_for_the_other_commands(trained):
    config = load_config(str(trained.published / 'config.json'))
    assert config.model.backbone.type == 'VOLONano' and config.train_dataloader.batch_size == 4
    assert len(config.classes) == CLASSES


def test_nothing_of_the_machine():
    config = load_config(CONFIG)
    config.work_dir, config.data_root = '/home/me/secret/runs', '/home/me/secret/town'
    set_data_root(config, '/home/me/secret/town')
    content = plain_config(config)
    assert 'secret' not in json.dumps(content)
    assert content['test_dataloader']['dataset']['data_root'] == 'data/town'
    assert content['train_dataloader']['dataset']['dataset']['data_root'] == 'data/town'
    assert 'secret' in config.data_root, 'the config given was changed'


def test_command(trained, tmp_path, capsys):
    assert run('publish', [CONFIG, str(trained.checkpoint), str(tmp_path / 'a' / 'model')]) == 0
    assert 'loaded again, equal labels' in capsys.readouterr().out
    assert 'Not evaluated.' in (tmp_path / 'a' / 'model' / 'README.md').read_text()
    assert run('publish', [CONFIG, str(trained.checkpoint), str(tmp_path / 'a' / 'model')]) == 2
    assert 'exists already' in capsys.readouterr().err


def test_existing_folder_is_left_alone(trained, tmp_path):
    (tmp_path / 'mine.txt').write_text('mine')
    with pytest.raises(UserError, match='exists already'):
        publish(CONFIG, trained.checkpoint, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['mine.txt']


def test_failure_leaves_nothing(trained, tmp_path, monkeypatch):
    monkeypatch.setattr('volo_seg.export.publish.model_card', lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(CONFIG, trained.checkpoint, tmp_path / 'model')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('size', [2**13, 2**16])
def test_a_full_disk_leaves_nothing(size, trained, tmp_path, capsys):
    """Too small for config.json, and for the weights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / 'out').mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        status = run('publish', [CONFIG, str(trained.checkpoint), str(tmp_path / 'out' / 'model')])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert status == 2, err
    assert re.fullmatch(r"error: '.*' cannot be written \(.*File too large.*\); free some space.*\n", err)
    assert not list((tmp_path / 'out').iterdir())


def test_unwritable(trained, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        publish(CONFIG, trained.checkpoint, tmp_path / 'file' / 'model')


@pytest.mark.parametrize('content', ['', '[]', '{"mIoU": 3}', None])
def test_metrics_that_are_none(trained, tmp_path, content):
    path = tmp_path / 'metrics.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r'metrics\.json'):
        publish(CONFIG, trained.checkpoint, tmp_path / 'model', metrics=path)


def test_metrics_of_other_classes(trained, tmp_path):
    scores = json.loads(trained.metrics.read_text())
    scores['classes'] = scores['classes'][:5]
    path = tmp_path / 'metrics.json'
    path.write_text(json.dumps(scores))
    with pytest.raises(UserError, match='5 other classes'):
        publish(CONFIG, trained.checkpoint, tmp_path / 'model', metrics=path)
    assert not (tmp_path / 'model').exists()


def rewritten(folder, **changes):
    content = json.loads((folder / 'config.json').read_text())
    content.update(changes)
    (folder / 'config.json').write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'classes': None}, 'no classes'),
        ({'classes': ['a', 3]}, 'no classes'),
        ({'palette': [[0, 0, 0]]}, 'no classes with a colour'),
        ({'palette': [[0, 0, 256]] * CLASSES}, 'no classes with a colour'),
        ({'model': {'type': 'subprocess.Popen', 'args': ['true']}}, 'refused'),
        ({'model': None}, 'has no model'),
    ],
)
def test_folder_that_says_something_else(copied, changes, told):
    rewritten(copied, **changes)
    with pytest.raises(UserError, match=told):
        Predictor.from_pretrained(copied, device='cpu')


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_missing_file(copied, name):
    (copied / name).unlink()
    with pytest.raises(UserError, match=f'holds no {name}'):
        Predictor.from_pretrained(copied, device='cpu')


@pytest.mark.parametrize('content', ['', '{', '[' * 100_000, '"x"'])
def test_damaged_config(copied, content):
    (copied / 'config.json').write_text(content)
    with pytest.raises(UserError, match=r'config\.json'):
        read_pretrained(copied)


def test_huge_config(copied):
    with open(copied / 'config.json', 'wb') as file:
        file.truncate(10**9)
    with pytest.raises(UserError, match='more than 8388608: publish'):
        read_pretrained(copied)


def test_cut_weights(copied):
    weights = copied / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match='damaged'):
        Predictor.from_pretrained(copied, device='cpu')


@pytest.mark.parametrize('text', ['nowhere', 'a/b/c', '../up', './x', 'owner/..', '/nowhere/at/all'])
def test_neither_folder_nor_id(text):
    with pytest.raises(UserError, match='neither a folder nor a hub id'):
        find_pretrained(text)


def test_hub(trained, monkeypatch):
    huggingface_hub = pytest.importorskip('huggingface_hub')
    asked = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, allow_patterns))
        return str(trained.published)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    predictor = Predictor.from_pretrained('someone/volo-nano', revision='v1', device='cpu')
    assert len(predictor.classes) == CLASSES
    assert asked == [('someone/volo-nano', 'v1', ['config.json', 'model.safetensors', 'metrics.json', 'README.md'])]


def test_hub_that_does_not_answer(monkeypatch):
    huggingface_hub = pytest.importorskip('huggingface_hub')

    def snapshot_download(*_, **__):
        raise ConnectionError('no route\nmore')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot_download)
    with pytest.raises(UserError, match=r'its download failed \(no route\)'):
        find_pretrained('someone/volo-nano')


# --- one file


def test_one_file_is_the_model(trained, tmp_path, capsys):
    """Config, classes and colours are inside; with --half, matrices are rounded and nothing else."""
    notes = tmp_path / 'notes.md'
    notes.write_text('## Limits\n\nA test.\n')
    words = [CONFIG, str(trained.checkpoint), str(tmp_path / 'one.safetensors'), '--metrics', str(trained.metrics)]
    assert run('publish', [*words, '--notes', str(notes)]) == 0
    assert 'loaded again, equal labels' in capsys.readouterr().out
    image = np.random.default_rng(1).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    ours = Predictor(CONFIG, trained.checkpoint, device='cpu', probabilities=True)
    whole = Predictor.from_checkpoint(tmp_path / 'one.safetensors', device='cpu', probabilities=True)
    assert np.array_equal(ours(image).probabilities, whole(image).probabilities)
    assert whole.classes == ours.classes and np.array_equal(whole.palette, ours.palette)
    card = (tmp_path / 'one.md').read_text()
    for told in ('value: 20.12', '- iterations: 7', '- seed: 11', "from_checkpoint('one.safetensors')", '## Limits'):
        assert told in card, told
    assert run('publish', words) == 2
    assert 'exists: give another name or allow overwriting' in capsys.readouterr().err
    size = (tmp_path / 'one.safetensors').stat().st_size
    assert run('publish', [*words, '--half', '--overwrite']) == 0
    assert (tmp_path / 'one.safetensors').stat().st_size < 0.55 * size
    first = (tmp_path / 'one.safetensors').read_bytes()
    assert run('publish', [*words, '--half', '--overwrite']) == 0
    assert (tmp_path / 'one.safetensors').read_bytes() == first
    stored = load_file(tmp_path / 'one.safetensors')['state_dict']
    for key, value in load_file(trained.checkpoint)['state_dict'].items():
        rounded = value.half() if value.is_floating_point() and value.ndim > 1 else value
        assert torch.equal(stored[key], rounded), key
    assert sorted(path.name for path in tmp_path.iterdir()) == ['notes.md', 'one.md', 'one.safetensors']


def test_own_classes_are_in_the_file(tmp_path):
    """The class names of a data set that the file does not have are those of its metadata."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from volo_seg.weights import FOLDER, WEIGHTS

    path = FOLDER / WEIGHTS['volo-nano_toyscapes'].file
    with safe_open(str(path), framework='pt') as file:
        meta, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    names = [f'class {number}' for number in range(19)]
    for content, message in (
        (json.dumps({'classes': names, 'palette': [[number, 0, 0] for number in range(19)]}), None),
        (json.dumps({'classes': names[:3]}), 'names 3 classes, but its model has 19'),
        (json.dumps({'classes': [1] * 19}), 'names no classes'),
        ('{"classes"', 'is damaged, incomplete or not a weights file'),
        ('[' * 100_000, 'is damaged, incomplete or not a weights file'),
    ):
        save_file(tensors, str(tmp_path / 'x.safetensors'), metadata={**meta, 'dataset_meta': content})
        if message is None:
            predictor = Predictor.from_checkpoint(tmp_path / 'x.safetensors', device='cpu')
            assert list(predictor.classes) == names and predictor.palette[5].tolist() == [5, 0, 0]
            continue
        with pytest.raises(UserError, match=message):
            Predictor.from_checkpoint(tmp_path / 'x.safetensors', device='cpu')


def test_flags_of_one_file(trained, tmp_path, capsys):
    assert run('publish', [CONFIG, str(trained.checkpoint), str(tmp_path / 'folder'), '--half']) == 2
    assert 'does not end in .safetensors' in capsys.readouterr().err
