"""Long runs do not collect anything: 300 training iterations, 300 images and 600 frames need no more than 100."""

import numpy as np
import pytest
import tiny
from fake_infer import Brightness
from images import film, pictures
from memory import STATM, Growth
from mmengine.hooks import Hook

from volo_seg.commands import infer, run

pytestmark = pytest.mark.skipif(not STATM.exists(), reason='needs /proc/self/statm')


class Measure(Hook):
    priority = 'LOWEST'

    def __init__(self, growth):
        self.growth = growth

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.growth.step()


def test_training(data, tmp_path):
    """With averaged weights, a checkpoint and a validation every 50 iterations."""
    intervals = dict(train_cfg__val_interval=50, default_hooks__checkpoint__interval=50)
    keep = dict(default_hooks__checkpoint__max_keep_ckpts=2, train_cfg__max_iters=300)
    runner = tiny.runner(data, tmp_path, '--ema', '0.1', **intervals, **keep)
    with Growth(first=110, last=290, traced=False) as growth:
        runner.register_hook(Measure(growth))
        runner.train()
    growth.check()


@pytest.fixture
def growth(monkeypatch):
    """The memory of ``volo-seg infer``, measured each time the network is called."""
    with Growth(first=100, last=290) as growth:
        segment = Brightness._segment

        def measured(self, batch, **wanted):
            growth.step()
            return segment(self, batch, **wanted)

        monkeypatch.setattr(Brightness, '_segment', measured)
        monkeypatch.setattr(infer, 'load_model', lambda *_: Brightness())
        yield growth


def call(*words):
    return run('infer', [str(word) for word in words])


def test_images(growth, tmp_path):
    """Of 43 kB each; their class scores take 173 kB."""
    images = pictures(tmp_path / 'images', 'first.png', size=(120, 120))
    content = (images / 'first.png').read_bytes()
    for index in range(299):
        (images / f'{index}.png').write_bytes(content)
    kinds = ('labels', 'overlay', 'confidence', 'probabilities', 'shares')
    assert call('x.pth', images, '--kinds', *kinds, '--out-dir', tmp_path / 'out') == 0
    growth.check()


def test_frames(growth, tmp_path):
    growth.steps = (200, 590)
    clip = film(tmp_path / 'clip.mp4', frames=600, size=(96, 128))
    assert call('x.pth', clip, '--kinds', 'labels', 'overlay', 'shares', '--out-dir', tmp_path / 'out') == 0
    assert len(list((tmp_path / 'out/labels/clip').iterdir())) == 600
    growth.check()


def test_network(trained, tmp_path):
    """A predictor with a real network, over 300 arrays."""
    from volo_seg.inference import Predictor

    predictor = Predictor(trained.config, trained.checkpoint, device='cpu', confidence=True, probabilities=True)
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    with Growth(first=100, last=290) as growth:
        for result in predictor.stream(image.copy() for _ in range(300)):
            assert result.labels.shape == (64, 96)
            growth.step()
    growth.check()
