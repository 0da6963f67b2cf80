"""One thread a process (processes share the cores), GPU tests skipped without a GPU, an oracle made importable."""

import os
import signal
import warnings

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('NO_ALBUMENTATIONS_UPDATE', '1')

import pytest
import torch

# a shell starts background jobs with Ctrl-C ignored, and what the tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')

# torchvision, which timm imports, declares these two only in builds with CUDA
_torchvision = None
if not torch.cuda.is_available():
    _torchvision = torch.library.Library('torchvision', 'DEF')
    for _name in ('nms', 'qnms'):
        _torchvision.define(f'{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if 'gpu' in item.keywords:
            item.add_marker(pytest.mark.skipif(True, reason='needs a CUDA device'))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
