"""One thread a process (processes share the cores), GPU tests skipped without a GPU, and what tests share: a data set,
a trained model, a small disk. Each is made once a session, when the first test asks for it; tests leave it as it is."""

import gc
import os
import signal
import subprocess
import warnings
from types import SimpleNamespace

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')

import pytest
import torch

# a shell starts background jobs with Ctrl-C ignored, and what the tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

# a torchvision built for CUDA, which timm imports, lacks the declarations of these two beside a torch without CUDA
_torchvision = None
if torch.version.cuda is None and not torch.cuda.is_available():
    _torchvision = torch.library.Library('torchvision', 'DEF')
    for _name in ('nms', 'qnms'):
        _torchvision.define(f'{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(pytest.mark.skipif(True, reason='needs a CUDA device'))


def pytest_collection_finish() -> None:
    """Take what the imports made out of each later garbage collection, of which MMEngine asks one for each data set."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """Five training and three validation images of 32 x 64 pixels with three classes, with the configs of ``tiny``."""
    import tiny

    return tiny.make_data(tmp_path_factory.mktemp('tiny') / 'data')


@pytest.fixture(scope='session')
def trained(data, tmp_path_factory):
    """A finished run of ``tiny``: its ``work_dir`` holds a checkpoint of each of six iterations, two validations and
    the full ``config``; ``checkpoint`` is the last one, ``losses`` are those of the iterations."""
    import tiny

    work_dir = tmp_path_factory.mktemp('trained')
    losses = tiny.train(data, work_dir, val_evaluator__metrics__figure=True)
    paths = {'config': work_dir / 'tiny.py', 'checkpoint': work_dir / 'iter_6.pth'}
    return SimpleNamespace(data=data, work_dir=work_dir, losses=losses, **paths)


@pytest.fixture(scope='session')
def toyscapes(tmp_path_factory):
    """Toyscapes of four training and two validation images of 64 x 128 pixels, as Cityscapes lays them out."""
    from volo_seg.commands import run

    root = tmp_path_factory.mktemp('toyscapes') / 'data'
    assert run('toyscapes', [str(root), '--train', '4', '--val', '2', '--size', '64', '128', '--style', 'plain']) == 0
    assert run('cityscapes', [str(root)]) == 0
    return root


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a file system of so many MB, or changes its size; returns its folder."""
    folder = tmp_path / 'disk'

    def mount(megabytes):
        options = f'remount,size={megabytes}m' if folder.exists() else f'size={megabytes}m'
        folder.mkdir(exist_ok=True)
        if subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'none', folder], capture_output=True).returncode:
            pytest.skip('this user may not mount a file system')
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(['umount', '--lazy', folder], check=True)
