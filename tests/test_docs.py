"""Runs every shell command and every Python block of the documentation, and checks the pages against the code.

The comment before a block, ``<!-- test: HOW -->``, says how it is run; CONTRIBUTING.md lists the ways.
"""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import tiny

from volo_seg.commands import COMMANDS, run

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'configs/volo/README.md')),
    # tests/test_tutorial.py runs the tutorial
    *sorted(page for page in (ROOT / 'docs').glob('*.md') if page.name != 'tutorial.md'),
]
BLOCK = re.compile(r'(?:^<!-- test: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$', re.M | re.S)
WAYS = ('run', 'tiny', 'config', 'types', 'mmseg', 'parse', 'skip')
REASONS = ('parse', 'skip')
# commands of other programs: not run
OTHERS = ('export', 'pip', 'python', 'make', 'git', 'curl', 'source', 'torchrun')


class Block(NamedTuple):
    page: Path
    line: int
    way: str
    reason: str
    language: str
    text: str

    @property
    def id(self):
        return f'{self.page.stem}:{self.line}:{self.way}'


def read_blocks(page):
    text = page.read_text()
    for found in BLOCK.finditer(text):
        way, _, reason = (found[1] or 'run').partition(' ')
        line = text.count('\n', 0, found.start()) + 1
        yield Block(page, line, way, reason.strip('()'), found[2], found[3])


BLOCKS = [block for page in PAGES for block in read_blocks(page)]
SHELL = [block for block in BLOCKS if block.language == 'bash']
PYTHON = [block for block in BLOCKS if block.language == 'python']
CONSOLE = [block for block in BLOCKS if block.language == 'console']


def lines_of(text):
    """The commands of a shell block, as lists of words, without comments and settings of variables."""
    for line in text.replace('\\\n', ' ').splitlines():
        for part in line.split(' && '):
            words = shlex.split(part, comments=True)
            while words and re.match(r'[A-Z_]+=', words[0]):
                words.pop(0)
            if words:
                yield words


def command_of(words):
    """(command, arguments) of volo-seg that ``words`` run, directly or by a tool; None for other programs."""
    if words[0] == 'volo-seg':
        return words[1], words[2:]
    if words[0] == 'torchrun':
        place = next(i for i, word in enumerate(words) if word.startswith('tools/'))
        return command_of(['python', *words[place:]])
    tool = words[1] if words[0] == 'python' else words[0]
    if not tool.startswith('tools/'):
        return None
    assert (ROOT / tool).is_file(), f'{tool} does not exist'
    if tool.endswith('.py'):
        (name,) = re.findall(r"run_tool\('(\w+)'\)", (ROOT / tool).read_text())
        return name, words[2:]
    positional = {'tools/dist_train.sh': [0], 'tools/dist_test.sh': [0, 1], 'tools/slurm_train.sh': [2]}[tool]
    rest = words[1:]
    return ('test' if 'test' in tool else 'train'), [*(rest[i] for i in positional), *rest[max(positional) + 2 :]]


def parse(name, arguments):
    """Let the argument parser of the command ``name`` take ``arguments``."""
    parser = importlib.import_module(f'volo_seg.commands.{name.replace("-", "_")}').build_parser()
    if name in ('train', 'print_config'):
        from volo_seg.commands.flags import bare_amp

        arguments = bare_amp(arguments)
    try:
        parser.parse_args(arguments)
    except SystemExit as error:
        pytest.fail(f'volo-seg {name} {shlex.join(arguments)}: its parser exits with {error.code}')


@pytest.fixture(scope='module')
def sandbox(tmp_path_factory):
    """The files that the pages speak of: a config, a trained checkpoint, images, data, an ONNX file, a GeoTIFF."""
    import rasterio

    root = tmp_path_factory.mktemp('docs')
    data = tiny.make_data(root / 'data' / 'mine')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        tiny.write_config(data, root / 'config.py')
        # visualizers of one name are shared in a process, and an earlier one writes into its own work dir
        words = ['config.py', '--work-dir', 'work_dirs/a', '--plain', '--seed', '1']
        assert run('train', [*words, '--cfg-options', 'visualizer.name=docs']) == 0
    shutil.copytree(root / 'work_dirs' / 'a', root / 'work_dirs' / 'b')
    shutil.copy(root / 'work_dirs' / 'a' / 'iter_1.pth', root / 'checkpoint.pth')
    shutil.copytree(data / 'images' / 'val', root / 'photos')
    cv2.imwrite(str(root / 'street.jpg'), cv2.imread(str(root / 'photos' / '0.png')))
    for name in ('predictions', 'truth'):
        shutil.copytree(data / 'annotations' / 'val', root / name)
    (root / 'data' / 'camvid').mkdir()
    write_annotations(root)
    (root / 'tools').symlink_to(ROOT / 'tools')
    (root / 'configs').mkdir()
    (root / 'configs' / 'volo').symlink_to(ROOT / 'configs' / 'volo')
    (root / 'configs' / '_base_').symlink_to(ROOT / 'configs' / '_base_')
    write_onnx(root / 'model.onnx')
    bands = np.random.default_rng(0).integers(0, 256, (3, 80, 96), dtype=np.uint8)
    with rasterio.open(root / 'scene.tif', 'w', driver='GTiff', width=96, height=80, count=3, dtype='uint8') as file:
        file.write(bands)
    return root


def write_annotations(root):
    """A COCO file with a polygon in each of the photos."""
    shutil.copytree(root / 'photos', root / 'annotated' / 'images')
    names = sorted(path.name for path in (root / 'photos').iterdir())
    height, width = cv2.imread(str(root / 'photos' / names[0])).shape[:2]
    images = [dict(id=number, file_name=name, width=width, height=height) for number, name in enumerate(names)]
    outline = [[2, 2, width - 2, 2, width - 2, height - 2]]
    notes = [dict(id=n, image_id=n, category_id=5, segmentation=outline) for n in range(len(names))]
    content = dict(images=images, annotations=notes, categories=[dict(id=5, name='scratch')])
    (root / 'annotated' / 'annotations.json').write_text(json.dumps(content))


def write_onnx(path):
    from onnx_models import config_of, network_of

    from volo_seg.export.metadata import make_metadata
    from volo_seg.export.onnx_export import make_graph, with_metadata
    from volo_seg.export.whole_image import WholeImage

    network = network_of(config_of())
    metadata = make_metadata(network, normalize=False, argmax=False, source={})
    path.write_bytes(with_metadata(make_graph(WholeImage(network.model)), metadata).SerializeToString())


@pytest.fixture
def place(sandbox, monkeypatch):
    monkeypatch.chdir(sandbox)
    return sandbox


def small(name, arguments):
    """``arguments`` with the tests' config for a shipped one, few images, and a single iteration for ``--iters``."""
    from volo_seg.config.load import shipped_configs

    shipped = shipped_configs()
    arguments = ['config.py' if word in shipped else word for word in arguments]
    arguments = [
        '1' if before == '--iters' else word for before, word in zip(['', *arguments], arguments, strict=False)
    ]
    return [*arguments, '--train', '2', '--val', '1', '--size', '32', '64'] if name == 'toyscapes' else arguments


@pytest.mark.parametrize('block', SHELL, ids=lambda block: block.id)
def test_shell_block(block, place, capfd):
    commands = list(lines_of(block.text))
    assert commands
    if block.way == 'skip':
        assert not any(words[0] == 'volo-seg' and parse(words[1], words[2:]) for words in commands)
        pytest.skip(block.reason)
    for words in commands:
        command = command_of(words)
        if command is None:
            assert block.way == 'parse', f'{words[0]} is not run: mark the block'
            check_other(words)
            continue
        parse(*command)
        if block.way == 'parse':
            continue
        name, arguments = command
        arguments = small(name, arguments) if block.way == 'tiny' else arguments
        status = run(name, arguments)
        assert status == 0, f'volo-seg {shlex.join([name, *arguments])}: {status}\n{capfd.readouterr().err}'


def check_other(words):
    """A program that is not volo-seg; a benchmark exists and has the flags."""
    assert words[0] in OTHERS
    if words[0] == 'python' and words[1].startswith('benchmarks/'):
        text = ''.join((ROOT / path).read_text() for path in (words[1], 'benchmarks/_measure.py'))
        assert {word for word in words[2:] if word.startswith('--')} <= set(re.findall(r"'(--[\w-]+)'", text))


@pytest.mark.parametrize('block', PYTHON, ids=lambda block: block.id)
def test_python_block(block, place):
    if block.way == 'skip':
        ast.parse(block.text)
        pytest.skip(block.reason)
    {'run': execute, 'config': check_config_block, 'types': check_types, 'mmseg': train_mmseg}[block.way](block, place)


def execute(block, place):
    exec(compile(block.text, f'{block.page}:{block.line}', 'exec'), {'__name__': '__main__'})


def check_config_block(block, place):
    """The block is a config file that loads and passes all checks of a training run."""
    from volo_seg.commands.train import build_parser, prepare

    name = re.match(r'# (\S+\.py)', block.text)[1]
    Path(name).write_text(block.text)
    images = ['--data-root', 'data/mine'] if 'data_root' not in block.text else []
    start = ['--cfg-options', 'model.backbone.init_cfg=None']  # else the official weights would be downloaded
    words = [name, '--no-check', *images, '--work-dir', f'work_dirs/{name}', *start]
    if not images:
        (place / 'data' / 'camvid').mkdir(exist_ok=True)
        shutil.copytree(place / 'data' / 'mine', place / 'data' / 'camvid', dirs_exist_ok=True)
    assert prepare(build_parser().parse_args(words)).model.backbone.type in ('VOLO', 'VOLONano')


def check_types(block, place):
    """Each dict with a type names a registered one and arguments that it takes."""
    from volo_seg.config.validation import accepted_keys, find_type

    namespace = {}
    exec(block.text, namespace)
    parts = [value for value in namespace.values() if isinstance(value, dict) and value.get('type') == 'VOLO']
    assert parts
    for part in parts:
        kind = find_type(part['type'])
        assert kind is not None and set(part) - {'type'} <= set(accepted_keys(kind)), part


def train_mmseg(block, place):
    """The block extends MMSegmentation's own config; MMEngine's runner trains it, validates it and resumes OCRNet."""
    if block.page.name == 'faq.md':
        assert block.text in (ROOT / 'README.md').read_text(), 'the block differs from that of README.md'
        return
    from mmengine.config import Config
    from mmengine.runner import Runner
    from mmseg_models import CONFIGS, TINY, narrow, with_backbone

    from volo_seg.config.agreement import check_channels

    path = Path('mmseg', re.match(r'# (\S+\.py)', block.text)[1])
    if path.parent.name == 'mask2former':
        pytest.importorskip('mmdet')
        pytest.importorskip('mmcv._ext', reason='Mask2Former needs the compiled operators of MMCV')
    for folder in ('_base_', path.parent.name):
        shutil.copytree(CONFIGS / folder, Path('mmseg/configs', folder), dirs_exist_ok=True)
    path.write_text(block.text)
    config = Config.fromfile(str(path))
    backbone = config.model.backbone
    assert re.fullmatch(rf'volo_{backbone.arch}_(224|384|512)', backbone.init_cfg.checkpoint)
    check_channels(config.model)
    narrow(with_backbone(config.model, dict(TINY, out_indices=backbone.get('out_indices', (0, 1, 2, 3)))))
    images = dict(data_root='data/mine', img_suffix='.png', seg_map_suffix='.png', reduce_zero_label=False)
    size = dict(type='RandomCrop', crop_size=(32, 32))
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    for split, name in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = config[f'{split}_dataloader']
        loader.update(batch_size=2 if split == 'train' else 1, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            images,
            data_prefix=dict(img_path=f'images/{name}', seg_map_path=f'annotations/{name}'),
            pipeline=[*steps[:2], *([size] if split == 'train' else []), steps[2]],
        )
    config.merge_from_dict(
        {
            'model.data_preprocessor.size': (32, 32),
            'train_cfg.max_iters': 1,
            'train_cfg.val_interval': 1,
            'default_hooks.checkpoint.interval': 1,
            'work_dir': f'work_dirs/{path.stem}',
        }
    )
    runner = Runner.from_cfg(tiny.named(config))
    runner.train()
    assert runner.iter == 1 and type(runner.model.backbone).__name__ == 'VOLO'
    # several processes need a gradient for each parameter
    assert all(p in runner.optim_wrapper.optimizer.state for p in runner.model.backbone.parameters())
    assert 0 <= runner.message_hub.get_scalar('val/mIoU').current() <= 100
    if path.parent.name != 'ocrnet':  # one is enough: tests/models/test_mmseg_heads.py resumes each head
        return
    config.merge_from_dict({'resume': True, 'train_cfg.max_iters': 2, 'train_cfg.val_interval': 5})
    resumed = Runner.from_cfg(tiny.named(config))
    resumed.train()
    assert resumed.iter == 2


@pytest.mark.parametrize('block', CONSOLE, ids=lambda block: block.id)
def test_console_block(block, place, capfd):
    """The message below a command is what it prints; ``…`` stands for any text."""
    command, *shown = block.text.splitlines()
    assert command.startswith('$ volo-seg ') and shown
    name, *arguments = shlex.split(command)[2:]
    status = run(name, arguments)
    printed = ' '.join(''.join(capfd.readouterr()).split())
    pattern = '.*'.join(re.escape(part.strip()) for part in ' '.join(' '.join(shown).split()).split('…'))
    assert re.search(pattern, printed), f'{command} ({status}) prints:\n{printed}'


def test_examples_of_help():
    for name, command in COMMANDS.items():
        parse(name, shlex.split(command.example))


def test_every_block_says_how_it_is_tested():
    """Blocks that are not run give a reason; the numbers change on purpose only."""
    for block in BLOCKS:
        assert block.way in WAYS, block.id
        assert block.language in ('bash', 'python', 'console', 'text', 'xml'), block.id
        assert (block.way in REASONS) == bool(block.reason), f'{block.id}: {block.reason!r}'
    code = [*SHELL, *PYTHON, *CONSOLE]
    ways = {way: sum(block.way == way for block in code) for way in WAYS}
    assert sum('test:' in page.read_text() for page in PAGES) > 5
    assert ways['skip'] == 15 and ways['parse'] == 16, ways
    assert ways['run'] + ways['tiny'] + ways['config'] > 30, ways


def test_config_page_lists_every_registered_type():
    """The table, the reference, and the registries of mmseg and of this package name the same types."""
    from mmengine import registry

    import volo_seg.register  # noqa: F401

    parents = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    registries = [each for parent in parents for each in (parent, *parent.children.values())]
    registries += [each for child in registries for each in child.children.values() if each.scope == 'volo_seg']
    kinds = [
        kind for each in registries for kind in each.module_dict.values() if kind.__module__.startswith('volo_seg')
    ]
    ours = {kind.__name__: f'{kind.__module__}.{kind.__name__}' for kind in kinds}
    assert len(ours) > 25
    table = (ROOT / 'docs' / 'config.md').read_text().partition('## Registered types')[2].partition('\n## ')[0]
    rows = [row.split('|')[1] for row in table.splitlines() if row.startswith('| `')]
    assert set(re.findall(r'`(\w+)`', ' '.join(rows))) == set(ours)
    reference = set(re.findall(r'^::: (\S+)$', (ROOT / 'docs' / 'types.md').read_text(), re.M))
    assert reference == {*ours.values(), 'volo_seg.windows.InferenceConfig'}


def test_config_page_lists_every_key_of_test_cfg():
    from volo_seg.windows import InferenceConfig

    rows = (ROOT / 'docs' / 'config.md').read_text().partition('## `test_cfg`')[2].splitlines()
    listed = {row.split('|')[1].strip(' `'): row.split('|')[2].strip(' `') for row in rows if row.startswith('| `')}
    assert list(listed) == [field.name for field in fields(InferenceConfig)]
    for field in fields(InferenceConfig):
        assert listed[field.name] in ('', repr(field.default)), field.name


def test_what_pages_name_exists():
    """Configs, commands, tools, modules and links."""
    from volo_seg.config.load import shipped_configs

    texts = {page: page.read_text() for page in PAGES}
    everything = '\n'.join(texts.values())
    names = set(re.findall(r'volo-[a-z0-9]+(?:-pyramid)?_upernet_[0-9]x[\w-]+', everything))
    assert len(names) >= 4
    own = {f'volo-{arch}_upernet_4xb4-80k_ade20k-512x512' for arch in ('d1', 'd2')}  # configs beside MMSegmentation's
    assert {name for name in names - own if name + '-512x512' not in shipped_configs()} <= set(shipped_configs())
    assert set(re.findall(r'`volo-seg ([a-z0-9_-]+)', everything)) <= set(COMMANDS)
    for path in set(re.findall(r'(?:tools|configs|benchmarks)/[\w/.-]+\w', everything)):
        assert (ROOT / path).exists() or f'\n# {path}\n' in everything, path  # or a block is this file
    paths = re.findall(r'`((?:[a-z_]+/)+[\w.]*|[a-z_]+\.py)`', texts[ROOT / 'docs' / 'architecture.md'])
    assert len(paths) > 40
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / 'volo_seg' / path).exists(), path
    readme = texts[ROOT / 'README.md']
    assert readme.count('\n') < 120
    for link in re.findall(r'\]\(([\w/.-]+)\)', readme):
        assert (ROOT / link).exists(), link


def test_the_site_builds_strictly(tmp_path):
    """No broken link, no page outside the navigation, and nothing from other hosts."""
    pytest.importorskip('zensical')
    config = (ROOT / 'mkdocs.yml').read_text()
    assert all(f' {page.name}' in config for page in (ROOT / 'docs').glob('*.md'))
    shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
    (tmp_path / 'volo_seg').symlink_to(ROOT / 'volo_seg')
    for name in ('SECURITY.md', 'mkdocs.yml'):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, '-m', 'zensical', 'build', '--strict'], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / 'site').glob('*.html'))
    assert len(pages) > 15
    for page in pages:
        loaded = re.findall(
            r'<(?:script|link|img|iframe)[^>]* (?:src|href)=["\']?(?:https?:)?//[^>]*', page.read_text()
        )
        assert not loaded, f'{page.name}: {loaded}'
