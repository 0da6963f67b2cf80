"""What a wheel brings along, and what finds it there."""

import os
import shutil
import subprocess
import sys
import tarfile
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
    assert shipped == {p.relative_to(ROOT) for folder in ('configs', 'tools') for p in (ROOT / folder).rglob('*.py')}
    assert (built / 'volo_seg' / '.mim' / 'model-index.yml').is_file()


def test_the_page_travels_with_the_package(built):
    shipped = {p.name for p in (built / 'volo_seg' / 'serve' / 'static').iterdir()}
    assert shipped == {'index.html', 'style.css', 'app.js', 'icon.svg'}


def test_templates_travel_with_the_package(built):
    """Every file of the package that is not Python."""
    kept = subprocess.run(['git', 'ls-files', 'volo_seg'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [name for name in kept.split() if not name.endswith('.py') and (ROOT / name).is_file()]
    assert {name.rpartition('.')[2] for name in files} >= {'j2', 'html', 'css', 'js', 'safetensors', 'json', 'md'}
    assert [name for name in files if not (built / name).is_file()] == []


def test_source_archive_holds_what_a_build_reads(tmp_path):
    """setup.py reads README.md; configs, tools, model index, docs and constraints come along."""
    words = ('setup.py', '-q', 'egg_info', '--egg-base', str(tmp_path), 'sdist', '--dist-dir', str(tmp_path))
    subprocess.run([sys.executable, *words, '--formats', 'tar'], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob('*.tar'))) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'README.md', 'setup.py', 'pyproject.toml', 'LICENSE', 'model-index.yml', 'constraints.txt'} <= names
    assert {'SECURITY.md', 'CHANGELOG.md', 'mkdocs.yml', 'configs/volo/metafile.yaml', 'tools/train.py'} <= names
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / 'docs').iterdir()}
    assert pages and pages <= names
    assert 'volo_seg/reports/report.html.j2' in names
    assert 'volo_seg/weights/volo-nano_toyscapes.safetensors' in names


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
    assert (int(count), arch) == (len(list((ROOT / 'configs').glob('[!_]*/*.py'))), 'd4')
    assert int(count) >= 26


def test_a_photo_is_segmented_without_checkout_and_network(built, tmp_path):
    """``python -m volo_seg photo.jpg`` from another folder, without a network where ``unshare`` works."""
    import cv2
    import numpy as np

    cv2.imwrite(str(tmp_path / 'photo.jpg'), np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8))
    offline = ['unshare', '-rn']
    if not shutil.which('unshare') or subprocess.run([*offline, 'true'], capture_output=True).returncode:
        offline = []
    done = subprocess.run(
        [*offline, sys.executable, '-m', 'volo_seg', 'photo.jpg'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={'PYTHONPATH': str(built), 'HOME': str(tmp_path), 'PATH': os.environ['PATH'], 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('model: volo-nano_toyscapes, which ships with volo-seg (')
    assert cv2.imread(str(tmp_path / 'results/labels/photo.png'), cv2.IMREAD_UNCHANGED).shape == (40, 80)


def test_inferencer_of_mmseg_finds_our_names(tmp_path):
    """By name below the scope volo_seg, and by path; the image is segmented by the pipeline of the config."""
    import numpy as np
    from mmseg.apis import MMSegInferencer

    import volo_seg.models  # noqa: F401

    inferencer = MMSegInferencer('volo-nano_upernet_1xb4-1200_toyscapes-256x256', scope='volo_seg', device='cpu')
    labels = inferencer(np.zeros((40, 80, 3), np.uint8))['predictions']
    assert labels.shape == (40, 80)


def test_version_is_one():
    from volo_seg import __version__

    assert f'## {__version__}' in (ROOT / 'CHANGELOG.md').read_text()
