"""The table of weights, the model that ships, and the places that take a name of the table."""

import hashlib
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from volo_seg.commands import main, run
from volo_seg.config.load import config_root, shipped_configs
from volo_seg.errors import UserError
from volo_seg.inference import Predictor, load_predictor
from volo_seg.weights import DEFAULT, FOLDER, WEIGHTS, did_you_mean, named

SHIPPED = {name: row for name, row in WEIGHTS.items() if row.url is None}
ROW = WEIGHTS[DEFAULT]
PATH = FOLDER / ROW.file


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """A scene as ``photo.jpg`` in the current folder."""
    from volo_seg.datasets.toyscapes import generate_scene

    scene = generate_scene(7, 0, split='val', size=(96, 192), style='random')
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('photo.jpg', scene.image)
    return Path('photo.jpg')


# --- the table


def test_every_row_says_where_it_comes_from():
    assert list(SHIPPED) == [DEFAULT]
    assert len(WEIGHTS) == 12
    for name, row in WEIGHTS.items():
        assert row.licence.startswith('Apache-2.0') and row.content and row.page, name
        if row.url:
            assert row.url.startswith(f'{row.page}/releases/download/') and row.url.endswith(row.file)
            assert row.config is None and row.sha256 is None  # the authors publish no hashes


def test_shipped_files_are_those_of_the_table():
    files = {path.name for path in FOLDER.iterdir() if path.suffix not in ('.py', '') and not path.name.startswith('.')}
    assert files == {f'{name}{suffix}' for name in SHIPPED for suffix in ('.json', '.md', '.safetensors')}
    for name, row in SHIPPED.items():
        content = (FOLDER / row.file).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.sha256, name
        assert len(content) < 8_000_000
        assert row.config in shipped_configs()
        assert len(row.classes) == len(row.palette) > 1


def test_the_card_says_how_it_was_made_and_what_it_cannot():
    card = (FOLDER / ROW.page).read_text()
    for told in (
        'tools/train_weights.sh',
        '## Limits',
        f'| mIoU | {ROW.figures["mIoU"]:.2f} |',
        'Apache-2.0',
        '- seed: ',
    ):
        assert told in card, told


def test_the_model_index_agrees():
    root = config_root()
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    models = [m for f in index['Import'] for m in yaml.safe_load((root / f).read_text())['Models']]
    found = {model['Alias']: model for model in models if 'Alias' in model}
    assert set(found) == set(SHIPPED)
    for name, model in found.items():
        assert (model['Name'], model['Weights']) == (SHIPPED[name].config, name)
        figures = model['Results'][0]['Metrics']
        assert figures == {key: SHIPPED[name].figures[key] for key in figures} and 'mIoU' in figures
    assert all(model['Weights'] is None for model in models if 'Alias' not in model)


def test_the_file_carries_config_and_classes():
    with safe_open(str(PATH), framework='np') as file:
        meta = json.loads(file.metadata()['dataset_meta'])
        kinds = {str(file.get_tensor(key).dtype) for key in file.keys() if file.get_tensor(key).ndim > 1}  # noqa: SIM118
        config = file.metadata()['cfg']
    assert kinds == {'float16'}
    assert tuple(meta['classes']) == ROW.classes and tuple(map(tuple, meta['palette'])) == ROW.palette
    assert 'work_dir' not in config and '/home' not in config


def test_the_shipped_model_has_its_figure(tmp_path):
    """On scenes that the training has not seen; a number of another machine or release may differ by a little."""
    check = ROW.figures['check']
    data = tmp_path / 'data'
    scenes = ['--train', '0', '--val', str(check['scenes']), '--seed', str(check['seed'])]
    assert run('toyscapes', [str(data), *scenes]) == 0
    words = [ROW.config, DEFAULT, '--data-root', str(data), '--work-dir', str(tmp_path / 'run')]
    assert run('test', [*words, '--plain', '--cfg-options', 'visualizer.name=shipped']) == 0
    (metrics,) = (tmp_path / 'run').rglob('metrics.json')
    found = json.loads(metrics.read_text())
    assert found['images'] == check['scenes']
    assert found['mIoU'] == pytest.approx(check['mIoU'], abs=1.0)


# --- names in the place of files


def test_no_model_means_the_shipped_one(photo):
    image = cv2.imread(str(photo))
    predictors = [
        Predictor(device='cpu'),
        Predictor(DEFAULT, device='cpu'),
        Predictor(checkpoint=DEFAULT, device='cpu'),
        Predictor(ROW.config, DEFAULT, device='cpu'),
        Predictor.from_checkpoint(PATH, device='cpu'),
        load_predictor(device='cpu'),
        load_predictor(DEFAULT, config=ROW.config, device='cpu'),
    ]
    expected = predictors[0](image).labels
    assert len(np.unique(expected)) > 2, 'the model has learned nothing'
    for predictor in predictors:
        assert predictor.classes == ROW.classes
        assert predictor.palette.tolist() == [list(colour) for colour in ROW.palette]
        assert np.array_equal(predictor(image).labels, expected)


def test_options_of_a_config_need_one():
    with pytest.raises(UserError, match='cfg_options .* override a config, and none is given'):
        Predictor(cfg_options=['model.test_cfg.mode=slide'])


def test_an_image_alone_is_enough(photo, capsys):
    assert main([str(photo)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f'model: {DEFAULT}, which ships with volo-seg (')
    assert '1 of 1 images segmented into results' in out
    labels = cv2.imread('results/labels/photo.png', cv2.IMREAD_UNCHANGED)
    assert np.array_equal(labels, Predictor(device='cpu')(photo).labels)
    # the same model by its name and by its file: finished files are skipped
    for model in (DEFAULT, str(PATH)):
        assert run('infer', [model, str(photo), '--resume']) == 0
        assert '1 were finished before' in capsys.readouterr().out
    shutil.copy(photo, 'other.jpg')
    assert run('infer', ['photo.jpg', 'other.jpg', '--overwrite']) == 0
    assert '2 of 2 images' in capsys.readouterr().out


def test_nearly_a_name(photo, capsys):
    assert run('infer', ['volo-nano_tyscapes', str(photo)]) == 2
    assert capsys.readouterr().err == (
        f"error: 'volo-nano_tyscapes' is neither a file nor the name of weights (did you mean {DEFAULT}?); correct it\n"
    )
    with pytest.raises(UserError, match=re.escape(f'(did you mean {DEFAULT}?)')):
        load_predictor('volo-nano_toyscape')
    with pytest.raises(UserError, match=re.escape(f"no weights file 'volo_nano_toyscapes' (did you mean {DEFAULT}?)")):
        Predictor(ROW.config, 'volo_nano_toyscapes')
    assert did_you_mean('checkpoint') == ''


def test_a_classifier_segments_nothing(photo, capsys):
    assert run('infer', ['volo_d1_224', str(photo)]) == 2
    message = capsys.readouterr().err
    assert 'volo_d1_224 is an ImageNet-1K classifier' in message and 'init_cfg' in message


def test_a_file_goes_before_a_name(photo):
    shutil.copy(PATH, 'mine.safetensors')
    Path(DEFAULT).write_text('no weights')
    assert named(DEFAULT) is None
    with pytest.raises(UserError, match=f'^{DEFAULT} is damaged, incomplete or not a weights file'):
        Predictor(ROW.config, DEFAULT)
    Path(DEFAULT).unlink()
    Path(DEFAULT).mkdir()
    with pytest.raises(UserError, match='holds no config.json'):
        load_predictor(DEFAULT)


def test_initial_weights_of_a_backbone():
    from mmseg.registry import MODELS

    import volo_seg.models  # noqa: F401
    from volo_seg.config.load import load_config

    settings = load_config(ROW.config).model.backbone
    settings.update(init_cfg=dict(type='Pretrained', checkpoint=DEFAULT), norm_cfg=None)
    backbone = MODELS.build(settings)
    backbone.init_weights()
    state = backbone.state_dict()
    with safe_open(str(PATH), framework='pt') as file:
        names = [key for key in file.keys() if key.startswith('backbone.')]  # noqa: SIM118
        assert len(names) > 20
        for key in names:
            assert torch.equal(state[key.removeprefix('backbone.')], file.get_tensor(key).float()), key


def test_training_starts_from_a_name(data, tmp_path, capsys):
    """The tests' data have three classes: the classification layers are new, and the log says so."""
    from volo_seg.commands.train import build_parser, prepare

    words = ['--data-root', str(data), '--no-check', '--work-dir', str(tmp_path / 'run'), '--load-from', DEFAULT]
    config = prepare(build_parser().parse_args([str(shipped_configs()[FOLDERS]), *words]))
    assert config.load_from == DEFAULT
    short = ['train_cfg.max_iters=1', 'train_cfg.val_interval=10', 'train_dataloader.num_workers=0']
    short += ['train_dataloader.batch_size=2', 'visualizer.name=names', 'default_hooks.logger.interval=1']
    assert run('train', [FOLDERS, *words, '--console', 'mmengine', '--cfg-options', *short]) == 0
    log = ''.join(path.read_text() for path in (tmp_path / 'run').rglob('*.log'))
    assert f'Load checkpoint from {DEFAULT}' in log
    assert '19 classes at decode_head.conv_seg, this model has 3; the layer starts with new weights' in log
    assert run('train', [FOLDERS, *words, '--resume']) == 2
    assert 'give one of the two' in capsys.readouterr().err


FOLDERS = 'volo-nano_upernet_1xb4-20k_folders-256x256'


def test_other_commands_take_a_name(photo, capsys):
    from volo_seg.config.load import load_config
    from volo_seg.inference.loaded_model import load_model

    loaded = load_model(load_config(ROW.config), DEFAULT)  # export, benchmark
    assert loaded.classes == ROW.classes
    words = [ROW.config, '--checkpoint', DEFAULT, '--size', '32', '64', '--repeat', '1', '--device', 'cpu']
    assert run('benchmark', words) == 0
    assert 'PyTorch' in capsys.readouterr().out
    from volo_seg.commands.serve import build_parser

    assert build_parser().parse_args([]).models == [DEFAULT]


def test_a_server_without_a_model_serves_the_shipped_one():
    from volo_seg.serve.models import open_models

    (model,) = open_models([DEFAULT], device='cpu')
    assert model.name == DEFAULT and model.predictor.classes == ROW.classes and model.confidence


def test_mmengine_reads_names_in_a_process_of_its_own(tmp_path):
    """MMSegInferencer finds config and weights by the name; MMEngine's loader reads it without a command of ours."""
    code = (
        'import numpy as np, volo_seg.models\n'
        'from mmseg.apis import MMSegInferencer\n'
        'from mmengine.runner.checkpoint import _load_checkpoint\n'
        f"print(len(_load_checkpoint({DEFAULT!r})['state_dict']))\n"
        f"labels = MMSegInferencer({DEFAULT!r}, scope='volo_seg', device='cpu')(np.load('image.npy'))['predictions']\n"
        "np.save('labels.npy', labels)\n"
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    image[:32] = 255
    np.save(tmp_path / 'image.npy', image)
    preset = 'import conftest\n'  # as in all tests: a torchvision of another torch is left out
    done = subprocess.run(
        [sys.executable, '-c', preset + code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={'PYTHONPATH': f'{FOLDER.parents[1]}:{Path(__file__).parents[1]}', 'OMP_NUM_THREADS': '1', 'PATH': ''},
    )
    assert done.returncode == 0, done.stderr
    with safe_open(str(PATH), framework='np') as file:
        assert f'\n{len(file.keys())}\n' in done.stdout
    assert np.array_equal(np.load(tmp_path / 'labels.npy'), Predictor(device='cpu')(image).labels)


# --- volo-seg weights


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints'


@pytest.fixture
def server(cache, monkeypatch):
    """Serves the file of volo_d1_224."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    buffer = io.BytesIO()
    torch.save({'a': torch.ones(3)}, buffer)
    server.content = buffer.getvalue()
    url = f'http://127.0.0.1:{server.server_port}/d1_224_84.2.pth.tar'
    monkeypatch.setitem(WEIGHTS, 'volo_d1_224', WEIGHTS['volo_d1_224']._replace(url=url))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_list_tells_all(cache, capsys):
    assert run('weights', ['list']) == 0
    out = capsys.readouterr().out
    for name, row in WEIGHTS.items():
        assert f'{name}: {row.content}' in out
        assert (row.url or str(PATH)) in out
    assert out.count('not published by the authors') == 11 and ROW.sha256 in out
    assert run('weights', ['list', 'volo_d1_224']) == 0
    assert capsys.readouterr().out.count('sha256') == 1


def test_path_and_get(server, cache, capsys):
    url = WEIGHTS['volo_d1_224'].url
    assert run('weights', ['path', DEFAULT]) == 0
    assert capsys.readouterr().out == f'{PATH}\n'
    assert run('weights', ['path', 'volo_d1_224']) == 2
    path = cache / 'd1_224_84.2.pth.tar'
    assert capsys.readouterr().err == (
        f'error: volo_d1_224 is not on this machine: volo-seg weights get volo_d1_224, or copy {url} to {path}\n'
    )
    assert run('weights', ['get', 'volo_d1_224', DEFAULT]) == 0
    assert capsys.readouterr().out == f'{path}\n{PATH}\n'
    assert path.read_bytes() == server.content
    server.content = b'other'
    for action in ('get', 'path'):
        assert run('weights', [action, 'volo_d1_224']) == 0
    assert path.read_bytes() != b'other'


def test_a_known_hash_is_checked(server, cache, monkeypatch, capsys):
    row = WEIGHTS['volo_d1_224']
    monkeypatch.setitem(WEIGHTS, 'volo_d1_224', row._replace(sha256='0' * 64))
    assert run('weights', ['get', 'volo_d1_224']) == 2
    assert 'it was changed, use another copy' in capsys.readouterr().err
    assert [path.name for path in cache.iterdir() if not path.name.endswith('.lock')] == []
    digest = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setitem(WEIGHTS, 'volo_d1_224', row._replace(sha256=digest))
    assert run('weights', ['get', 'volo_d1_224']) == 0


def test_progress_of_a_download(server, cache, monkeypatch, capsys):
    from volo_seg.progress import Progress

    buffer = io.BytesIO()
    torch.save({'a': torch.ones(1_000_000)}, buffer)
    server.content = buffer.getvalue()
    monkeypatch.setattr('volo_seg.checkpoints.locate.Progress', lambda total, unit: Progress(total, unit=unit, every=0))
    assert run('weights', ['get', 'volo_d1_224']) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('4/4 MB, ') and 'MB/s' in last and last.endswith('0 s left')


def test_without_a_network(cache, monkeypatch, capsys):
    monkeypatch.setitem(WEIGHTS, 'volo_d1_224', WEIGHTS['volo_d1_224']._replace(url='http://127.0.0.1:1/d1.pth.tar'))
    assert run('weights', ['get', 'volo_d1_224']) == 2
    message = capsys.readouterr().err
    assert message.startswith(f'error: cannot download http://127.0.0.1:1/d1.pth.tar to {cache}/d1.pth.tar (')
    assert message.endswith('download the file elsewhere and copy it there\n') and message.count('\n') == 1


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['get'], 'volo-seg weights get needs a name; one of volo-nano_toyscapes, '),
        (['path', 'volo_d1_225'], "'volo_d1_225' is not the name of weights (did you mean volo_d1_224?); one of "),
    ],
)
def test_mistakes(words, message, capsys):
    assert run('weights', words) == 2
    assert capsys.readouterr().err.startswith(f'error: {message}')
