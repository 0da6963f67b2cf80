"""``volo-seg eval`` and ``volo-seg submit``: folders of label images in, scores or an archive out."""

import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from volo_seg.commands import run
from volo_seg.datasets.cityscapes_labels import id_to_train_id, train_id_to_id
from volo_seg.evaluation.folders import map_labels, shift_table
from volo_seg.label_png import ranges

ROOT = Path(__file__).parents[2]
FRAMES = ('ulm_000000_000019', 'ulm_000001_000019')


def save(path, labels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(labels, np.uint8)).save(path, **options)
    return path


def eval_json(tmp_path, *words):
    """Run ``volo-seg eval`` and return its JSON."""
    out = tmp_path / 'out.json'
    out.unlink(missing_ok=True)
    assert run('eval', [*map(str, words), '--json', str(out)]) == 0
    return json.loads(out.read_text())


def png_chunks(*chunks, size=(4, 2)):
    """An 8-bit grey PNG with other ``chunks``, (type, content), before its pixels."""
    header, pixels = struct.pack('>IIBBBBB', *size, 8, 0, 0, 0, 0), zlib.compress(bytes(10))
    parts = [(b'IHDR', header), *chunks, (b'IDAT', pixels), (b'IEND', b'')]
    packed = b''.join(struct.pack(f'>I4s{len(d)}sI', len(d), kind, d, zlib.crc32(kind + d)) for kind, d in parts)
    return b'\x89PNG\r\n\x1a\n' + packed


@pytest.fixture
def folders(tmp_path):
    """Two label files in subfolders and predictions that miss one pixel each."""
    truth, prediction = tmp_path / 'truth', tmp_path / 'prediction'
    for name in ('a/1.png', 'b/2.png'):
        save(truth / name, [[0, 0, 1, 1], [255, 255, 1, 1]])
        save(prediction / name, [[0, 1, 1, 1], [0, 1, 1, 255]])
    return prediction, truth


# eval


def test_scores_own_classes(tmp_path, folders, capsys):
    content = eval_json(tmp_path, *folders, '--classes', 'sky', 'ground')
    assert content['confusion_matrix'] == [[2, 2], [0, 6]]
    assert content['missed_by_class'] == [0, 2]
    assert content['ignored_pixels'] == 4
    assert content['mIoU'] == pytest.approx(100 * (1 / 2 + 6 / 10) / 2)
    out = capsys.readouterr().out
    assert 'mIoU 55.00% (mean IoU over the classes that occur in the ground truth or in a prediction)' in out
    assert '2 pixels (16.67%) are predicted as the ignored value and count as misses' in out
    assert '2 images, 12 pixels scored, 4 ignored' in out
    assert 'worst first:' in out


def test_options_of_own_classes(tmp_path, folders):
    names = tmp_path / 'classes.txt'
    names.write_text('sky\n\n ground \n')
    plain = eval_json(tmp_path, *folders, '--classes-file', names)
    assert [row['class'] for row in plain['classes']] == ['sky', 'ground']
    three = ['--classes', 'sky', 'ground', 'ghost']
    ade = eval_json(tmp_path, *folders, *three, '--definition', 'ade', '--boundary')
    assert (ade['definition'], ade['mIoU']) == ('ade', pytest.approx(plain['mIoU'] * 2 / 3))
    assert 0 < ade['boundary_mIoU'] <= 100
    shifted = [tmp_path / 'p1', tmp_path / 't1']
    for source, target in zip(folders, shifted, strict=True):
        for path in source.rglob('*.png'):
            labels = np.asarray(Image.open(path))
            save(target / path.relative_to(source), np.where(labels == 255, 0, labels + 1))
    moved = eval_json(tmp_path, *shifted, '--classes', 'sky', 'ground', '--reduce-zero-label')
    assert moved['confusion_matrix'] == plain['confusion_matrix']
    assert moved['missed_by_class'] == plain['missed_by_class']
    other = eval_json(tmp_path, *folders, '--classes', *'abc', '--ignore-index', '255')
    assert other['ignore_index'] == 255


def test_binary_masks(tmp_path, capsys):
    """Masks of 0 and 255 are scored with one flag, and without it a warning names the flag."""
    for name, white in (('one', 255), ('two', 255), ('three', 1)):
        save(tmp_path / name / 'a.png', [[0, 0, white], [0, white, white]])
    save(tmp_path / 'two/a.png', [[0, 255, 255], [0, 255, 255]])
    words = [tmp_path / 'two', tmp_path / 'one', '--classes', 'ground', 'thing']
    assert run('eval', [*map(str, words)]) == 0
    assert 'warning: the ground truth holds 0 and the ignored value 255 alone' in capsys.readouterr().out
    scores = eval_json(tmp_path, *words, '--label-map', '255:1')
    assert scores['ignored_pixels'] == 0 and scores['confusion_matrix'] == [[2, 1], [0, 3]]
    out = capsys.readouterr().out
    assert 'warning' not in out and '6 pixels scored, 0 ignored' in out
    assert run('eval', [str(tmp_path / 'three'), str(tmp_path / 'three'), '--classes', 'ground', 'thing']) == 0
    assert 'warning' not in capsys.readouterr().out


@pytest.mark.parametrize('word', ['255', '255:2', 'x:1', '255=1'])
def test_label_map_mistakes(folders, capsys, word):
    prediction, truth = folders
    assert run('eval', [str(prediction), str(truth), '--classes', 'a', 'b', '--label-map', word]) == 2
    assert f'--label-map {word!r} is not OLD:NEW with a class 0..1 or 255' in capsys.readouterr().err


def test_class_files_are_read_as_in_training(tmp_path, folders, capsys):
    prediction, truth = folders
    file = tmp_path / 'classes.txt'
    for content in (b'\xef\xbb\xbfa\nb\n', b'a 0 0 0\nb 255 0 0\n', 'a\nb\n'.encode('utf-16'), b'0, a\n1, b\n'):
        file.write_bytes(content)
        scores = eval_json(tmp_path, prediction, truth, '--classes-file', file)
        assert [one['class'] for one in scores['classes']] == ['a', 'b']
    file.write_bytes(b'for\xeat\nb\n')
    capsys.readouterr()
    assert run('eval', [str(prediction), str(truth), '--classes-file', str(file)]) == 2
    assert 'line 1 is not UTF-8 text' in capsys.readouterr().err


def test_report_folder(tmp_path, folders):
    out = tmp_path / 'report'
    assert run('eval', [*map(str, folders), '--classes', 'sky', 'ground', '--out-dir', str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        'confusion_matrix.png',
        'metrics.csv',
        'metrics.json',
    ]


def test_pairs_by_name_and_leaves_extra_predictions_out(tmp_path, folders, capsys):
    prediction, truth = folders
    flat = tmp_path / 'flat'
    for path in prediction.rglob('*.png'):
        save(flat / f'{path.stem}_pred.png', Image.open(path))
    save(flat / '3_pred.png', [[0]])
    words = ['--classes', 'sky', 'ground', '--pred-suffix', '_pred.png']
    content = eval_json(tmp_path, flat, truth, *words)
    assert content['confusion_matrix'] == [[2, 2], [0, 6]]
    assert '1 predictions have no ground truth and were left out' in capsys.readouterr().out


def cityscapes(tmp_path, *, real_ids):
    """Ground truth as the data set has it, and predictions in training ids, or in label ids."""
    rng = np.random.default_rng(0)
    for frame in FRAMES:
        ids = rng.integers(0, 34, (12, 16))
        save(tmp_path / 'gt' / 'ulm' / f'{frame}_gtFine_labelIds.png', ids)
        save(tmp_path / 'gt' / 'ulm' / f'{frame}_gtFine_color.png', np.zeros((12, 16, 3)))
        train = np.where(rng.random(ids.shape) < 0.5, id_to_train_id()[ids], 7)
        labels = train_id_to_id()[train] if real_ids else train
        save(tmp_path / 'pred' / f'{frame}_leftImg8bit.png', labels)
    return tmp_path / 'pred', tmp_path / 'gt'


def test_cityscapes_ids_and_training_ids_score_the_same(tmp_path):
    train = eval_json(tmp_path, *cityscapes(tmp_path / 'train', real_ids=False), '--dataset', 'cityscapes')
    folders = cityscapes(tmp_path / 'label', real_ids=True)
    label = eval_json(tmp_path, *folders, '--dataset', 'cityscapes', '--pred-ids', 'label')
    assert train == label
    assert train['images'] == 2
    assert len(train['classes']) == 19
    for path in list(folders[1].rglob('*_labelIds.png')):
        trained = path.with_name(path.name.replace('labelIds', 'labelTrainIds'))
        save(trained, id_to_train_id()[np.asarray(Image.open(path))])
        path.unlink()
    assert eval_json(tmp_path, *folders, '--dataset', 'cityscapes', '--pred-ids', 'label') == train


def test_ade20k_counts_from_one(tmp_path):
    save(tmp_path / 'gt' / 'ADE_val_00000001.png', [[0, 1, 150, 150]])
    save(tmp_path / 'pred' / 'ADE_val_00000001.png', [[5, 1, 150, 0]])
    content = eval_json(tmp_path, tmp_path / 'pred', tmp_path / 'gt', '--dataset', 'ade20k')
    assert (content['ignored_pixels'], content['missed_pixels'], content['counted_pixels']) == (1, 1, 3)
    assert content['confusion_matrix'][149][149] == content['confusion_matrix'][0][0] == 1
    save(tmp_path / 'zero' / 'ADE_val_00000001.png', [[4, 0, 149, 255]])
    words = ['--dataset', 'ade20k', '--pred-ids', 'train']
    assert eval_json(tmp_path, tmp_path / 'zero', tmp_path / 'gt', *words) == content


def refuse_eval(capsys, words, *parts):
    assert run('eval', [str(word) for word in words]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1, captured.err
    assert 'Traceback' not in captured.err
    for part in parts:
        assert part in lines[0], lines[0]


def test_missing_predictions_are_listed(tmp_path, folders, capsys):
    prediction, truth = folders
    for i in range(12):
        save(truth / f'c/{i:02}x.png', [[0]])
    refuse_eval(capsys, [*folders, '--classes', 'x'], 'has no prediction for c/00x.png', 'c/09x.png and 2 more')


def test_ambiguous_predictions_are_errors(tmp_path, capsys):
    save(tmp_path / 'gt' / '1.png', [[0]])
    save(tmp_path / 'pred' / 'a' / '1.png', [[0]])
    words = [tmp_path / 'pred', tmp_path / 'gt', '--classes', 'x']
    assert run('eval', [str(word) for word in words]) == 0
    save(tmp_path / 'pred' / 'b' / '1.png', [[0]])
    refuse_eval(capsys, words, 'both match', '1.png')
    save(tmp_path / 'gt2' / 'c' / '1.png', [[0]])
    save(tmp_path / 'gt2' / 'd' / '1.png', [[0]])
    save(tmp_path / 'one' / '1.png', [[0]])
    refuse_eval(capsys, [tmp_path / 'one', tmp_path / 'gt2', '--classes', 'x'], 'matches both', 'subfolders')


@pytest.mark.parametrize(
    ('words', 'parts'),
    [
        ([], ['give one of --dataset, --classes and --classes-file']),
        (['--classes', 'a', '--dataset', 'ade20k'], ['give one of']),
        (['--dataset', 'ade20k', '--ignore-index', '7'], ['--dataset ade20k fixes the numbering']),
        (['--classes', 'a', '--pred-ids', 'train'], ['--pred-ids belongs to --dataset']),
        (['--classes-file', 'nowhere.txt'], ['nowhere.txt cannot be read']),
        (['--classes', 'sky'], ['1.png: the ground truth holds 1 ', '(0..0)']),
        (['--classes', 'a', 'b', '--ignore-index', '9'], ['holds 255', 'set ignore_index=255']),
        (
            ['--classes', 'a', 'b', '--reduce-zero-label'],
            ['prediction/a/1.png holds', 'the labels known here are'],
        ),
        (['--classes', 'a', 'b', '--gt-suffix', '_x.png'], ["no file that ends with '_x.png'"]),
    ],
)
def test_mistakes_give_one_sentence(folders, capsys, words, parts):
    prediction, _ = folders
    if '--reduce-zero-label' in words:
        save(prediction / 'a/1.png', [[0, 1, 1, 1], [0, 1, 1, 9]])
    refuse_eval(capsys, [*folders, *words], *parts)


def test_wrong_files_give_one_sentence(tmp_path, folders, capsys):
    prediction, truth = folders
    classes = ['--classes', 'sky', 'ground']
    refuse_eval(capsys, [tmp_path / 'none', truth, *classes], 'none is not a folder')
    save(prediction / 'a/1.png', [[0, 1]])
    refuse_eval(capsys, [*folders, *classes], '2 x 4', '1 x 2')
    save(prediction / 'a/1.png', [[0, 1, 1, 1], [0, 1, 1, 5]])
    refuse_eval(capsys, [*folders, *classes], 'prediction/a/1.png: the prediction holds 5')
    save(prediction / 'a/1.png', np.zeros((2, 4, 3)))
    refuse_eval(capsys, [*folders, *classes], 'a/1.png is a colour image')
    (tmp_path / 'empty.txt').write_text('\n')
    refuse_eval(capsys, [*folders, '--classes-file', tmp_path / 'empty.txt'], 'is empty; write one class name')
    (tmp_path / 'mine.json').write_text('{}')
    refuse_eval(capsys, [*folders, *classes, '--json', tmp_path / 'mine.json'], 'mine.json exists and was not')
    assert (tmp_path / 'mine.json').read_text() == '{}'


@pytest.mark.parametrize(
    ('content', 'part'),
    [
        (png_chunks((b'pHYs', b'123')), 'pHYs'),
        (png_chunks((b'zTXt', b'a\0\0' + zlib.compress(bytes(2**26)))), 'too large'),
        (png_chunks((b'iCCP', b'a\0\0' + zlib.compress(bytes(2**27)))), 'too large'),
        (png_chunks(size=(60000, 60000)), 'has 60000 x 60000 pixels, more than the limit'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 2\n%%EndComments\n', 'not an image'),
    ],
    ids=['pHYs', 'text', 'profile', 'size', 'postscript'],
)
def test_damaged_label_files_give_one_sentence(folders, capsys, content, part):
    for folder in folders:
        path = folder / 'a/1.png'
        before = path.read_bytes()
        path.write_bytes(content)
        refuse_eval(capsys, [*folders, '--classes', 'sky', 'ground'], f'{path} cannot be read as an image (', part)
        path.write_bytes(before)


def test_tables_of_values():
    assert ranges([3, 0, 1, 2, 255]) == '0..3, 255'
    assert ranges([0, 1, 2, 5, 255]) == '0..2, 5, 255'
    assert ranges([]) == ''
    table = shift_table(3, ignore_index=255)
    assert map_labels(np.array([[0, 1, 3, 255]]), table, where='x').tolist() == [[255, 0, 2, 255]]


def test_help_needs_no_heavy_imports():
    code = (
        'import sys\nfrom volo_seg.commands import run\n'
        'for name in ("eval", "submit"):\n'
        '    try:\n        run(name, ["--help"])\n    except SystemExit:\n        pass\n'
        'print(sorted({"torch", "mmseg", "mmengine", "matplotlib"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == '[]'
    for door in ('eval_folder', 'make_submission'):
        words = [sys.executable, str(ROOT / 'tools' / 'analysis_tools' / f'{door}.py'), '--help']
        env = {'PYTHONPATH': str(ROOT), 'PATH': ''}
        assert 'PRED_DIR' in subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout


# submit


@pytest.fixture
def test_set(tmp_path):
    """Predictions of two Cityscapes images in training ids, and the images."""
    rng = np.random.default_rng(1)
    for frame in FRAMES:
        blocks = rng.integers(0, 19, (8, 16)).repeat(128, 0).repeat(128, 1)
        save(tmp_path / 'pred' / 'ulm' / f'{frame}_leftImg8bit.png', blocks)
        save(tmp_path / 'images' / 'ulm' / f'{frame}_leftImg8bit.png', np.zeros((1024, 2048)))
    return tmp_path / 'pred', tmp_path / 'images'


def submit(*words):
    return run('submit', [str(word) for word in words])


def test_cityscapes_submission(tmp_path, test_set, capsys):
    pred, images = test_set
    archive = tmp_path / 'deep' / 'out.zip'
    assert submit(pred, archive, '--dataset', 'cityscapes', '--images', images) == 0
    assert '0 errors, 0 warnings' in capsys.readouterr().out
    with zipfile.ZipFile(archive) as file:
        assert file.namelist() == [f'{frame}.png' for frame in FRAMES]
        for frame in FRAMES:
            with Image.open(file.open(f'{frame}.png')) as image:
                assert image.mode == 'L'
                labels = np.asarray(image)
            original = np.asarray(Image.open(pred / 'ulm' / f'{frame}_leftImg8bit.png'))
            assert np.array_equal(labels, train_id_to_id()[original])
    assert [path.name for path in archive.parent.iterdir()] == ['out.zip']
    before = archive.read_bytes()
    assert submit(pred, archive, '--dataset', 'cityscapes') == 2
    assert 'out.zip exists and is not overwritten' in capsys.readouterr().err
    assert archive.read_bytes() == before
    again = tmp_path / 'again.zip'
    assert submit(pred, again, '--dataset', 'cityscapes') == 0
    assert again.read_bytes() == before
    assert 'warning: archive: predictions for 2 images, but the test set of Cityscapes has 1525' in (
        capsys.readouterr().out
    )


def test_ade20k_submission(tmp_path, capsys):
    save(tmp_path / 'pred' / 'ADE_test_00000001.png', [[1, 150]])
    save(tmp_path / 'images' / 'ADE_test_00000001.jpg', np.zeros((1, 2)))
    words = ['--dataset', 'ade20k', '--images', tmp_path / 'images']
    assert submit(tmp_path / 'pred', tmp_path / 'a.zip', *words) == 0
    save(tmp_path / 'zero' / 'ADE_test_00000001.png', [[0, 149]])
    assert submit(tmp_path / 'zero', tmp_path / 'b.zip', *words, '--pred-ids', 'train') == 0
    assert (tmp_path / 'a.zip').read_bytes() == (tmp_path / 'b.zip').read_bytes()
    assert submit(tmp_path / 'zero', tmp_path / 'c.zip', *words) == 2
    assert 'ADE_test_00000001.png holds 0, but the labels known here are 1..150' in capsys.readouterr().err
    assert not (tmp_path / 'c.zip').exists()


@pytest.mark.parametrize(
    ('name', 'labels', 'words', 'part'),
    [
        ('ulm_000000_000019_leftImg8bit.png', [[0]], [], '1x1, but Cityscapes requires 2048x1024'),
        ('street.png', [[0]], [], 'street.png is not named as Cityscapes requires'),
        ('ulm_000000_000019_a.png', [[0]], [], 'are both predictions of ulm_000000_000019'),
        ('ulm_000009_000019.png', [[0]], ['--images'], 'has predictions without an image: ulm_000009_000019'),
        (None, None, ['--images'], 'has no prediction for ulm_000001_000019'),
        ('ulm_000000_000019_leftImg8bit.png', np.full((1024, 2048), 255), [], 'holds 255'),
        (None, None, ['--pred-ids', 'label'], 'the labels known here are 7..8, 11..13'),
    ],
)
def test_what_cannot_be_submitted(tmp_path, test_set, capsys, name, labels, words, part):
    pred, images = test_set
    if name is not None:
        save(pred / 'ulm' / name, labels)
    elif '--images' in words:
        (pred / 'ulm' / f'{FRAMES[1]}_leftImg8bit.png').unlink()
    words = [*words, images] if words == ['--images'] else words
    assert submit(pred, tmp_path / 'out.zip', '--dataset', 'cityscapes', *words) == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.glob('*out.zip*'))


def test_wrong_use_of_submit(tmp_path, capsys):
    for words, part in (
        (['--dataset', 'ade20k'], 'give PRED_DIR and OUT.zip'),
        (['pred', '--dataset', 'ade20k'], 'give PRED_DIR and OUT.zip'),
        (['pred', '--dataset', 'ade20k', '--validate', 'a.zip'], 'leave out PRED_DIR'),
        (['--dataset', 'ade20k', '--validate', 'a.zip', '--images', 'none'], 'none is not a folder'),
        (['--dataset', 'ade20k', '--validate', 'a.zip', '--images', tmp_path], 'holds no image of ADE20K'),
    ):
        assert submit(*words) == 2
        assert part in capsys.readouterr().err


def png(labels, mode=None, fmt='PNG'):
    import io

    stream = io.BytesIO()
    image = Image.fromarray(np.asarray(labels, np.uint8))
    (image if mode is None else image.convert(mode)).save(stream, fmt)
    return stream.getvalue()


def zipped(path, members):
    with pytest.MonkeyPatch.context() as patch, zipfile.ZipFile(path, 'w') as file:
        patch.setattr('warnings.warn', lambda *_, **__: None)  # about names that occur twice
        for name, content in members:
            file.writestr(name, content)
    return path


GOOD = np.full((1024, 2048), 7)


@pytest.mark.parametrize(
    ('members', 'level', 'part'),
    [
        ([], 'error', 'the archive is empty'),
        ([('road.png', png(GOOD))], 'error', 'road.png: the server expects names like <city>_<6 digits>'),
        ([(f'{FRAMES[0]}.jpg', png(GOOD))], 'error', 'the server expects names like'),
        ([(f'{FRAMES[0]}.png', png([[7]]))], 'error', '1x1 pixels, but the image has 2048x1024'),
        ([(f'{FRAMES[0]}.png', png(GOOD, 'RGB'))], 'error', 'a PNG of mode RGB; write an 8-bit PNG'),
        ([(f'{FRAMES[0]}.png', png(GOOD, fmt='BMP'))], 'error', 'a BMP of mode L'),
        ([(f'{FRAMES[0]}.png', b'hello')], 'error', 'cannot be read as an image'),
        (
            [(f'{FRAMES[0]}.png', png(GOOD + 248))],
            'error',
            'holds 255, but values are 0..33; write label ids',
        ),
        ([(f'{FRAMES[0]}.png', png(GOOD * 0 + 1))], 'error', 'holds 1 only, as training ids do'),
        ([(f'{FRAMES[0]}.png', png(GOOD - 7 + 29 * (GOOD.cumsum(1) > 99)))], 'warning', 'are never correct'),
        ([(f'{FRAMES[0]}.png', png(GOOD))] * 2, 'error', 'the archive holds this name 2 times'),
        (
            [(f'{FRAMES[0]}.png', png(GOOD)), (f'{FRAMES[0]}_b.png', png(GOOD))],
            'error',
            f'{FRAMES[0]} already has the prediction',
        ),
        (
            [(f'results/{FRAMES[0]}.png', png(GOOD))],
            'warning',
            '1 files lie in folders; put all files at the top',
        ),
        (
            [('__MACOSX/._x.png', b''), (f'{FRAMES[0]}.png', png(GOOD))],
            'warning',
            'not a prediction; leave it out',
        ),
    ],
)
def test_validator_names_each_fault(tmp_path, capsys, members, level, part):
    archive = zipped(tmp_path / 'a.zip', members)
    status = submit('--validate', archive, '--dataset', 'cityscapes')
    lines = [line for line in capsys.readouterr().out.splitlines() if part in line]
    assert len(lines) >= 1
    assert lines[0].startswith(f'{level}: ')
    assert status == (1 if level == 'error' else 0)


def test_validator_compares_with_the_images(tmp_path, test_set, capsys):
    other = 'ulm_000007_000019'
    archive = zipped(tmp_path / 'a.zip', [(f'{FRAMES[0]}.png', png(GOOD)), (f'{other}.png', png(GOOD))])
    assert submit('--validate', archive, '--dataset', 'cityscapes', '--images', test_set[1]) == 1
    out = capsys.readouterr().out
    assert f'error: {FRAMES[1]}: no prediction for this image' in out
    assert f'error: {other}: there is no such image' in out
    assert 'a.zip: 2 errors, 0 warnings for the server of Cityscapes' in out


def test_validator_of_damaged_members(tmp_path, test_set, capsys):
    """Members that do not inflate, hostile PNG files, and a test image that cannot be read."""
    archive, name = tmp_path / 'a.zip', f'{FRAMES[0]}.png'
    random = np.random.default_rng(0)
    for _ in range(60):
        with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as file:
            file.writestr(name, random.integers(0, 4, 4000, dtype=np.uint8).tobytes())
        raw = bytearray(archive.read_bytes())
        at = int(random.integers(0, 900))
        raw[at : at + 8] = random.bytes(8)
        archive.write_bytes(raw)
        assert submit('--validate', archive, '--dataset', 'cityscapes') == 1
        assert 'error: ' in capsys.readouterr().out
    for content in (png_chunks((b'pHYs', b'123')), png_chunks(size=(60000, 60000))):
        zipped(archive, [(name, content)])
        assert submit('--validate', archive, '--dataset', 'cityscapes') == 1
        assert f'error: {name}: cannot be read as an image (' in capsys.readouterr().out
    zipped(archive, [(name, png(GOOD))])
    image = next(path for path in test_set[1].rglob('*') if path.name.startswith(FRAMES[0]))
    image.write_bytes(b'hello')
    assert submit('--validate', archive, '--dataset', 'cityscapes', '--images', test_set[1]) == 1
    assert f'error: {image}: the test image cannot be read (' in capsys.readouterr().out


def test_validator_of_what_is_no_archive_or_broken(tmp_path, capsys):
    rule = ['--dataset', 'ade20k']
    assert submit('--validate', tmp_path / 'none.zip', *rule) == 1
    assert 'there is no such file' in capsys.readouterr().out
    (tmp_path / 'text.zip').write_text('hello')
    assert submit('--validate', tmp_path / 'text.zip', *rule) == 1
    assert 'not a readable zip archive' in capsys.readouterr().out
    names = [f'ADE_test_{i:08}.png' for i in range(30)]
    archive = zipped(tmp_path / 'a.zip', [(name, png([[0, 150], [i, 1]])) for i, name in enumerate(names)])
    assert submit('--validate', archive, *rule) == 0
    assert 'warning: archive: holds 0, which are never correct; write 1..150' in capsys.readouterr().out
    raw = bytearray(archive.read_bytes())
    raw[60] ^= 255
    archive.write_bytes(raw)
    assert submit('--validate', archive, *rule) == 1
    assert f'error: {names[0]}: cannot be' in capsys.readouterr().out
    archive = zipped(tmp_path / 'b.zip', [(name, b'') for name in names])
    assert submit('--validate', archive, *rule) == 1
    assert 'and 10 more' in capsys.readouterr().out


def test_validator_knows_the_limit_of_the_server(tmp_path):
    from dataclasses import replace

    from volo_seg.evaluation.submission.archive import ade20k_rule
    from volo_seg.evaluation.submission.check import check_submission

    archive = zipped(tmp_path / 'a.zip', [('ADE_test_00000001.png', png([[1]]))])
    assert check_submission(archive, ade20k_rule()) == []
    found = check_submission(archive, replace(ade20k_rule(), max_bytes=10))
    assert ['but the server accepts at most' in str(finding) for finding in found] == [True]
