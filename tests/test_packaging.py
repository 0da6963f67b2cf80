"""What a wheel brings along, and what finds it there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The package as a wheel would hold it."""
    base = tmp_path_factory.mktemp('build')
    words = ('setup.py', '-q', 'build', '--build-base', str(base), 'egg_info', '--egg-base', str(base))
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    return base / 'lib'


def test_configs_and_index_travel_with_the_package(built):
    shipped = {p.relative_to(built / 'volo_seg' / '.mim') for p in (built / 'volo_seg' / '.mim').rglob('*.py')}
    assert shipped == {p.relative_to(ROOT) for p in (ROOT / 'configs').rglob('*.py')}
    assert (built / 'volo_seg' / '.mim' / 'model-index.yml').is_file()


def test_the_page_travels_with_the_package(built):
    shipped = {p.name for p in (built / 'volo_seg' / 'serve' / 'static').iterdir()}
    assert shipped == {'index.html', 'style.css', 'app.js', 'icon.svg'}


def test_names_resolve_without_a_checkout(built, tmp_path):
    code = (
        'from volo_seg.config.load import config_root, load_config, shipped_configs\n'
        'print(config_root()); print(len(shipped_configs()))\n'
        "print(load_config('volo-d4_upernet_8xb1-160k_cityscapes-1024x1024').model.backbone.arch)\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, env={'PYTHONPATH': str(built)}
    )
    assert done.returncode == 0, done.stderr
    root, count, arch = done.stdout.split()[-3:]
    assert Path(root) == built / 'volo_seg' / '.mim'
    assert (int(count), arch) == (16, 'd4')


def test_inferencer_of_mmseg_finds_our_names(tmp_path):
    """By name below the scope volo_seg, and by path; the image is segmented by the pipeline of the config."""
    import numpy as np
    from mmseg.apis import MMSegInferencer

    import volo_seg.models  # noqa: F401

    inferencer = MMSegInferencer('volo-nano_upernet_1xb4-600_toyscapes-256x256', scope='volo_seg', device='cpu')
    labels = inferencer(np.zeros((40, 80, 3), np.uint8))['predictions']
    assert labels.shape == (40, 80)


def test_version_is_one():
    from volo_seg import __version__

    assert f'## {__version__}' in (ROOT / 'CHANGELOG.md').read_text()


def test_readme_names_what_exists():
    """Every config name, tool and page that the README mentions is there."""
    from volo_seg.commands import COMMANDS
    from volo_seg.config.load import shipped_configs

    text = (ROOT / 'README.md').read_text()
    names = set(re.findall(r'volo-[a-z0-9]+(?:-pyramid)?_upernet_[\w-]+', text))
    assert len(names) >= 4
    assert names <= set(shipped_configs())
    for path in set(re.findall(r'(?:tools|docs|configs)/[\w/.-]+\w', text)):
        assert (ROOT / path).exists(), path
    assert set(re.findall(r'volo-seg ([a-z0-9]+)\b', text)) <= set(COMMANDS)
