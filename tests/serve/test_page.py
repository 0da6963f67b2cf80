"""The page in a real browser: choose an image, look, point, change the opacity, download; on a phone too."""

import os
import re
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from serving import Site, noise, png

from volo_seg.serve.examples import find_examples, open_examples
from volo_seg.serve.limits import Limits

CHROMIUM = shutil.which('chromium')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='needs chromium (Debian: apt-get install chromium)')
FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
]
CONFIG = 'volo-nano_upernet_1xb4-1200_toyscapes-256x256'
DESKTOP = {'viewport': {'width': 1280, 'height': 900}}
PHONE = {'viewport': {'width': 390, 'height': 844}, 'has_touch': True, 'is_mobile': True, 'device_scale_factor': 2}


def save_checkpoint(path, *, seed):
    """A checkpoint with its config inside, of random weights that see many classes."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from volo_seg.config.load import load_config
    from volo_seg.inference.loaded_model import describe_dataset

    torch.manual_seed(seed)
    config = load_config(CONFIG)
    init_default_scope('mmseg')
    config.model.backbone.init_cfg = None
    model = MODELS.build(config.model)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    described = describe_dataset(config.test_dataloader.dataset)
    meta = {'cfg': config.pretty_text, 'dataset_meta': {key: described[key] for key in ('classes', 'palette')}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two checkpoints, an image, and what is none."""
    folder = tmp_path_factory.mktemp('page')
    for seed, name in enumerate(('first', 'second')):
        save_checkpoint(folder / f'{name}.pth', seed=seed)
    rough = np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)
    (folder / 'examples').mkdir()
    cv2.imwrite(str(folder / 'my street.png'), cv2.resize(rough, (150, 90), interpolation=cv2.INTER_CUBIC))
    cv2.imwrite(str(folder / 'examples' / 'large.jpg'), cv2.resize(rough, (640, 480)))
    (folder / 'broken.png').write_bytes((folder / 'my street.png').read_bytes()[:-900])
    (folder / 'heavy.png').write_bytes(bytes(2 * 2**20))
    (folder / 'temporary').mkdir()
    return folder


@pytest.fixture(scope='module')
def server(folder):
    """(process, address) of the page, as a user starts it."""
    words = [str(folder / 'first.pth'), f'other={folder / "second.pth"}', '--port', '0', '--max-upload', '1']
    words += ['--max-pixels', '400000', '--examples', str(folder / 'examples'), '--device', 'cpu']
    process = subprocess.Popen(
        [sys.executable, '-m', 'volo_seg', 'serve', *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'TMPDIR': str(folder / 'temporary')},
    )
    line = process.stdout.readline()
    address = re.search(r'(http://127\.0\.0\.1:\d+) \(page\)', line)
    assert address, line + (process.stderr.read() if process.poll() is not None else '')
    assert line.startswith('first, other: ')
    yield process, address[1]
    process.kill()
    process.wait()


@pytest.fixture(scope='module')
def chromium():
    playwright = pytest.importorskip('playwright.sync_api')
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, server):
    """A function that opens the page; whatever it reports or asks elsewhere fails the test."""
    _, address = server
    complaints, contexts = [], []

    def note(request):
        if not request.url.startswith((address, 'data:', 'blob:')):
            complaints.append(f'asked {request.url}')

    def open_page(*, allowed='Canvas2D', **options):
        contexts.append(chromium.new_context(accept_downloads=True, **options))
        page = contexts[-1].new_page()
        # by default the one warning that is let pass is about these tests, which read canvases back
        page.on('console', lambda m: m.type != 'log' and allowed not in m.text and complaints.append(m.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('request', note)
        page.goto(address)
        page.wait_for_selector('body[data-ready]')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def segment(page, path):
    page.set_input_files('#file', path)
    page.wait_for_selector('.panel', timeout=60_000)


def point(page, panel, x, y, size, *, tap=False):
    """Point at the pixel (x, y) of the image; what each panel says, as (class, confidence in %)."""
    box = page.locator('.stage').nth(panel).bounding_box()
    place = box['x'] + (x + 0.5) / size[0] * box['width'], box['y'] + (y + 0.5) / size[1] * box['height']
    page.touchscreen.tap(*place) if tap else page.mouse.move(*place)
    for readout in page.locator('.readout').all():
        readout.get_by_text(f'at {x}, {y}').wait_for(timeout=60_000)
    said = page.locator('.readout').all_inner_texts()
    return [re.fullmatch(r'(.+)\s(\d+) % sure, at .*', text, re.S).groups() for text in said]


def download(page, panel, word):
    with page.expect_download() as caught:
        page.locator('.panel').nth(panel).get_by_text(word).click()
    with Image.open(caught.value.path()) as image:
        return caught.value.suggested_filename, np.array(image)


def covered(page):
    """Share of the overlay's pixels that are painted, for each panel."""
    return page.evaluate("""() => [...document.querySelectorAll('.stage canvas')].map((canvas) => {
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return data.filter((v, i) => i % 4 === 3 && v === 255).length / (data.length / 4);
    })""")


@pytest.fixture(scope='module')
def expected(folder):
    """What the predictor itself says of the image, for both checkpoints."""
    from volo_seg.inference import Predictor

    return [
        Predictor.from_checkpoint(folder / name, device='cpu', confidence=True)(folder / 'my street.png')
        for name in ('first.pth', 'second.pth')
    ]


def test_choose_look_point_and_download(open_page, folder, expected):
    page = open_page(**DESKTOP)
    assert page.title() == 'volo-seg: first, other'
    segment(page, folder / 'my street.png')
    assert page.locator('.title h2').all_inner_texts() == ['first', 'other']
    assert covered(page) == [1, 1]
    for i, result in enumerate(expected):
        rows = page.locator('.legend').nth(i).locator('em').all_inner_texts()
        assert rows == list(result.shares())
        assert len(rows) >= 3
        name, labels = download(page, i, 'Labels')
        assert name == f'my-street_{("first", "other")[i]}_labels.png'
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, result.labels)
    for x, y in ((3, 2), (146, 87), (70, 41), (20, 60)):
        for (said, sure), result in zip(point(page, 0, x, y, (150, 90)), expected, strict=True):
            assert said == result.classes[result.labels[y, x]]
            assert abs(int(sure) - 100 * result.confidence[y, x]) <= 1


def test_opacity_and_views_ask_nothing_of_the_server(open_page, folder, expected):
    page = open_page(**DESKTOP)
    segment(page, folder / 'my street.png')
    asked = []
    page.on('request', lambda request: asked.append(request.url))
    page.locator('#opacity').fill('100')
    assert page.locator('.stage canvas').first.evaluate('e => getComputedStyle(e).opacity') == '1'
    name, overlay = download(page, 1, 'Overlay')
    assert name == 'my-street_other_overlay.png'
    assert np.array_equal(overlay[..., 2::-1], expected[1].colour())
    page.locator('#opacity').fill('0')
    assert page.locator('.stage canvas').first.evaluate('e => getComputedStyle(e).opacity') == '0'
    assert page.locator('#percent').inner_text() == '0 %'
    page.get_by_role('button', name='Confidence').click()
    assert page.locator('.scale').first.is_visible()
    assert covered(page) == [1, 1]
    page.get_by_role('button', name='Classes').click()
    page.locator('.legend button').first.click()
    share = next(iter(expected[0].shares().values()))
    assert covered(page) == pytest.approx([share, 1])
    assert not [url for url in asked if not url.startswith(('data:', 'blob:'))]


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_phone(open_page, folder, expected, scheme):
    """Nothing is wider than the screen, and a tap names the class."""
    page = open_page(**PHONE, color_scheme=scheme)
    segment(page, folder / 'my street.png')
    wide = page.evaluate("""() => [...document.querySelectorAll('body, body *')].filter((e) => {
        const box = e.getBoundingClientRect();
        return !e.closest('.examples') && (box.left < 0 || box.right > innerWidth + 0.5);
    }).map((e) => e.className)""")
    assert wide == []
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    page.locator('.stage').first.scroll_into_view_if_needed()
    said = point(page, 0, 75, 45, (150, 90), tap=True)
    assert [name for name, _ in said] == [r.classes[r.labels[45, 75]] for r in expected]
    text, ground = page.evaluate("""() => ['color', 'backgroundColor'].map((key) =>
        getComputedStyle(document.querySelector(key === 'color' ? 'body' : '.panel'))[key])""")
    light = [sum(map(int, re.findall(r'\d+', colour)[:3])) for colour in (text, ground)]
    assert (light[0] < light[1]) == (scheme == 'light')


def test_mistakes_are_one_sentence_on_the_page(open_page, folder):
    page = open_page(allowed='the server responded with a status of 4', **DESKTOP)
    for path, sentence in (
        ('broken.png', "image 'broken.png' is damaged or cut off (Truncated File Read)"),
        ('heavy.png', 'heavy.png has 2.0 MB; this page takes up to 1 MB.'),
        ('first.pth', None),
    ):
        page.set_input_files('#file', folder / path)
        page.wait_for_function(
            "name => document.querySelector('#error').textContent.includes(name)", arg=path, timeout=60_000
        )
        said = page.locator('#error').inner_text()
        assert sentence is None or said == sentence
        assert '\n' not in said
        assert page.locator('.panel').count() == 0
    page.locator('.examples button').click()
    page.wait_for_selector('.panel', timeout=60_000)
    assert page.locator('.title span').first.inner_text().startswith('640 x 480 pixels')
    assert not page.locator('#error').is_visible()


def test_keys_move_the_point(open_page, folder):
    page = open_page(**DESKTOP)
    segment(page, folder / 'my street.png')
    page.locator('.stage').first.focus()
    for key in ('ArrowRight', 'ArrowRight', 'ArrowUp'):
        page.keyboard.press(key)
    assert page.locator('.readout').first.inner_text().endswith('at 78, 44')


def test_drop_paste_and_a_file_that_no_browser_shows(open_page, folder, expected):
    """A 16-bit TIFF, dropped and then pasted: its picture comes from the server."""
    page = open_page(**DESKTOP)
    image = cv2.imread(str(folder / 'my street.png'))
    content = list(cv2.imencode('.tiff', image.astype(np.uint16) * 257)[1].tobytes())
    for event in ('drop', 'paste'):
        page.evaluate(
            """([content, event]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(content)], event + '.tiff'));
                const key = event === 'drop' ? 'dataTransfer' : 'clipboardData';
                const kind = event === 'drop' ? DragEvent : ClipboardEvent;
                document.body.dispatchEvent(new kind(event, { bubbles: true, cancelable: true, [key]: data }));
            }""",
            [content, event],
        )
        page.wait_for_function(
            "name => document.querySelector('.files a')?.download === name", arg=f'{event}_first_labels.png'
        )
        assert np.array_equal(download(page, 0, 'Labels')[1], expected[0].labels)
    shown = page.locator('.stage img').first.evaluate("""(photo) => {
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [photo.naturalWidth, photo.naturalHeight];
        canvas.getContext('2d').drawImage(photo, 0, 0);
        return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data];
    }""")
    shown = np.array(shown).reshape(90, 150, 4)[..., 2::-1]
    assert np.abs(shown - image.astype(int)).mean() < 8


def test_a_new_image_gives_up_the_one_before(open_page, folder):
    page = open_page(**DESKTOP)
    page.set_input_files('#file', folder / 'examples' / 'large.jpg')
    page.set_input_files('#file', folder / 'my street.png')
    # on a fast machine the first image may have been shown already
    page.wait_for_function(
        "() => document.querySelector('.title span')?.textContent.startsWith('150 x 90 pixels')", timeout=60_000
    )
    page.wait_for_timeout(1500)
    assert page.locator('.title span').first.inner_text().startswith('150 x 90 pixels')


def test_a_large_image_is_drawn_smaller_and_read_whole(chromium, tmp_path):
    image = np.repeat(np.arange(3000, dtype=np.uint8)[None, :, None] // 8, 600, axis=0).repeat(3, axis=2)
    (tmp_path / 'wide.png').write_bytes(png(image))
    with Site(max_pixels=2**22, max_bytes=2**20) as site:
        context = chromium.new_context(viewport={'width': 3200, 'height': 1400})
        page = context.new_page()
        page.goto(f'http://127.0.0.1:{site.port}')
        page.wait_for_selector('body[data-ready]')
        segment(page, tmp_path / 'wide.png')
        assert page.locator('.stage canvas').evaluate('e => [e.width, e.height]') == [2048, 410]
        assert download(page, 0, 'Labels')[1].shape == (600, 3000)
        for x in (5, 1503, 2990):
            page.locator('.stage').evaluate(
                """(stage, x) => {
                    const box = stage.getBoundingClientRect();
                    const at = { clientX: box.left + ((x + 0.5) / 3000) * box.width, clientY: box.top + 9 };
                    stage.dispatchEvent(new MouseEvent('click', at));
                }""",
                x,
            )
            said = page.locator('.readout').inner_text()
            read = int(re.search(r'at (\d+), ', said)[1])
            assert abs(read - x) <= 3  # the pointer has whole pixels of the screen
            assert said.startswith(site.predictor.classes[image[0, read, 0] % 3])
        context.close()


def test_names_are_text(chromium, tmp_path):
    """Names of classes, models, examples and uploads hold HTML: no element comes of it, and nothing runs."""
    evil = '<img src=x onerror="document.title=1"><b id=bad>x</b>'
    (tmp_path / 'examples').mkdir()
    for place in (tmp_path / 'examples', tmp_path):
        (place / f'{evil.replace("/", "")}.png').write_bytes(png(noise(0)))
        (place / f'broken{evil.replace("/", "")}.png').write_bytes(png(noise(0)) if place != tmp_path else b'nonsense')
    with Site(examples=open_examples(find_examples(tmp_path / 'examples', Limits()), Limits())) as site:
        site.predictor.classes = (evil, evil + '2', '<script>document.title=2</script>')
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f'http://localhost:{site.port}')
        page.wait_for_selector('body[data-ready]')
        elements = page.evaluate("document.querySelectorAll('*').length")
        broken, whole = sorted((p for p in tmp_path.iterdir() if p.is_file()), key=lambda p: 'broken' not in p.name)
        page.set_input_files('#file', broken)
        page.wait_for_selector('#error:not([hidden])')
        assert '<img src=x' in page.locator('#error').inner_text()
        assert page.evaluate("document.querySelectorAll('*').length") == elements
        segment(page, whole)
        point(page, 0, 3, 3, (40, 24))
        assert page.locator('.legend em').all_inner_texts()[0] in site.predictor.classes
        assert set(page.locator('.legend em').all_inner_texts()) == set(site.predictor.classes)
        assert page.locator('#bad, body script, [onerror], b b').count() == 0
        assert page.title() == 'volo-seg: one'
        context.close()


def test_ctrl_c_ends_it_and_leaves_nothing(chromium, server, folder):
    """Last of the module: it stops the server. A page that is still open says so, in one sentence."""
    process, address = server
    context = chromium.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector('body[data-ready]')
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (0, '', '')
    assert list((folder / 'temporary').iterdir()) == []
    page.set_input_files('#file', folder / 'my street.png')
    page.wait_for_selector('#error:not([hidden])', timeout=60_000)
    assert 'does not answer' in page.locator('#error').inner_text()
    context.close()
