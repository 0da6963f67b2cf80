"""Backbones without MMEngine, MMCV and MMSegmentation, and the entry points of torch.hub."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from volo_seg.checkpoints import VARIANTS
from volo_seg.layers import VOLOFeatures, VOLONanoFeatures

ROOT = Path(__file__).parents[1]
BLOCK = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmseg'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Refuse())
import torch
"""


def without_mm(code, **options):
    done = subprocess.run([sys.executable, '-c', BLOCK + code], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_feature_maps_and_weights_without_mm(tmp_path):
    """Feature maps, and the weights that ship, by the layers and by torch.hub from another folder."""
    without_mm(
        f"""
from volo_seg.checkpoints import load_equal, load_pretrained, save_file
from volo_seg.layers import VOLOFeatures, VOLONanoFeatures

nano = VOLONanoFeatures(out_indices=(1, 3)).eval()
nano.load_state_dict(load_equal(nano.state_dict(), 'volo-nano_toyscapes', model_name='VOLONano'))
image = torch.randn(1, 3, 33, 50, generator=torch.Generator().manual_seed(0))
maps = nano(image)
assert [tuple(x.shape) for x in maps] == [(1, 64, 5, 7), (1, 128, 2, 2)]
arch = dict(depths=(1, 1, 1, 1), embed_dims=(32, 64, 64, 64), num_heads=(1, 2, 2, 2), mlp_ratio=2, stem_channels=8)
volo = VOLOFeatures(arch, img_size=32).eval()
assert [tuple(x.shape) for x in volo(image)] == [(1, 32, 5, 7)] + [(1, 64, 3, 4)] * 3
save_file(volo.state_dict(), 'volo.safetensors')
again = VOLOFeatures(arch, img_size=32).eval()
again.load_state_dict(load_pretrained(again.state_dict(), 'volo.safetensors', model_name='volo').state_dict)
assert all(torch.equal(a, b) for a, b in zip(volo(image), again(image)))
hub = torch.hub.load({str(ROOT)!r}, 'volo_nano', source='local', pretrained=True, out_indices=(1, 3))
assert all(torch.equal(a, b) for a, b in zip(maps, hub(image)))
assert not {{'mmengine', 'mmcv', 'mmseg'}} & {{name.split('.')[0] for name in sys.modules}}
""",
        cwd=tmp_path,
        env={'PYTHONPATH': str(ROOT), 'HOME': str(tmp_path), 'OMP_NUM_THREADS': '1'},
    )


def test_registered_backbones_are_the_plain_ones():
    """Same names, same maps: weights of one load into the other."""
    from volo_seg.models import VOLO, VOLONano

    arch = VARIANTS['nano']._asdict()
    image = torch.randn(1, 3, 40, 56)
    for plain, registered in (
        (VOLOFeatures(arch, drop_path_rate=0.1), VOLO(arch, drop_path_rate=0.1, norm_cfg={'type': 'SyncBN'})),
        (VOLONanoFeatures(), VOLONano()),
    ):
        assert isinstance(registered, type(plain)) and not registered.is_init
        registered.load_state_dict(plain.state_dict())
        for a, b in zip(plain.eval()(image), registered.eval()(image), strict=True):
            assert torch.equal(a, b)


def test_entry_points_of_torch_hub(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    spec = importlib.util.spec_from_file_location('hubconf', ROOT / 'hubconf.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    # what torch.hub.list would show
    entries = {name: v for name, v in vars(module).items() if callable(v) and not name.startswith('_')}
    names = sorted(entries)
    assert names == ['predictor', *(f'volo_d{i}' for i in range(1, 6)), 'volo_nano', 'volo_nano_toyscapes']
    for i in range(1, 6):
        with torch.device('meta'):
            model = torch.hub.load(str(ROOT), f'volo_d{i}', source='local', out_indices=[3])
        assert type(model) is VOLOFeatures and model.arch == VARIANTS[f'd{i}'] and not model.training
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        logits = torch.hub.load(str(ROOT), 'volo_nano_toyscapes', source='local')(image)
    assert logits.shape[:2] == (1, 19)
    predictor = torch.hub.load(str(ROOT), 'predictor', source='local', device='cpu')
    labels = predictor(torch.zeros(40, 80, 3, dtype=torch.uint8).numpy()).labels
    assert labels.shape == (40, 80)
    assert all(entry.__doc__ for entry in entries.values())


def test_pretrained_takes_a_file_of_this_variant_only(tmp_path):
    from volo_seg.checkpoints import save_file
    from volo_seg.errors import UserError

    save_file(VOLOFeatures(VARIANTS['nano']._asdict()).state_dict(), tmp_path / 'small.safetensors')
    with pytest.raises(UserError, match='small.safetensors contains volo_nano weights, this model is volo_d1'):
        torch.hub.load(str(ROOT), 'volo_d1', source='local', pretrained=str(tmp_path / 'small.safetensors'))
    with pytest.raises(UserError, match='it is not of this VOLONano'):
        torch.hub.load(str(ROOT), 'volo_nano', source='local', pretrained=str(tmp_path / 'small.safetensors'))
