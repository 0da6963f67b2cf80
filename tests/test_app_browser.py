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
CONFIG = 'volo-nano_upernet_1xb4-600_toyscapes-256x256'
DESKTOP = {'viewport': {'width': 1280, 'height': 900}}
PHONE = {'viewport': {'width': 390, 'height': 844}, 'has_touch': True, 'is_mobile': True, 'device_scale_factor': 2}


def save_checkpoint(path, *, seed):
    """A checkpoint with its config inside, of random weights that see many classes."""
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from volo_seg.config.load import load_config
    from volo_seg.inference.network import describe_dataset

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
        [sys.executable, '-m', 'volo_seg', 'app', *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'TMPDIR': str(folder / 'temporary')},
    )
    line = process.stdout.readline()
    address = re.search(r'open (http://127\.0\.0\.1:\d+) in a browser', line)
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

    def open_page(**options):
        contexts.append(chromium.new_context(accept_downloads=True, **options))
        page = contexts[-1].new_page()
        # the one warning that is let pass is about these tests, which read canvases back
        page.on('console', lambda m: m.type != 'log' and 'Canvas2D' not in m.text and complaints.append(m.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.on('request', note)
        page.goto(address)
        page.wait_for_selector('[data-vs=drop]')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def segment(page, path):
    page.set_input_files('[data-vs=file]', path)
    page.wait_for_selector('.vs-panel', timeout=60_000)


def point(page, panel, x, y, size, *, tap=False):
    """Point at the pixel (x, y) of the image; what each panel says, as (class, confidence in %)."""
    box = page.locator('.vs-stage').nth(panel).bounding_box()
    place = box['x'] + (x + 0.5) / size[0] * box['width'], box['y'] + (y + 0.5) / size[1] * box['height']
    page.touchscreen.tap(*place) if tap else page.mouse.move(*place)
    for readout in page.locator('.vs-readout').all():
        readout.get_by_text(f'at {x}, {y}').wait_for(timeout=10_000)
    said = page.locator('.vs-readout').all_inner_texts()
    return [re.fullmatch(r'(.+)\s(\d+) % sure, at .*', text, re.S).groups() for text in said]


def download(page, panel, word):
    with page.expect_download() as caught:
        page.locator('.vs-panel').nth(panel).get_by_text(word).click()
    data = np.fromfile(caught.value.path(), np.uint8)
    return caught.value.suggested_filename, cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def covered(page):
    """Share of the overlay's pixels that are painted, for each panel."""
    return page.evaluate("""() => [...document.querySelectorAll('.vs-stage canvas')].map((canvas) => {
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
    assert page.locator('.vs-title h2').all_inner_texts() == ['first', 'other']
    assert covered(page) == [1, 1]
    for i, result in enumerate(expected):
        rows = page.locator('.vs-legend').nth(i).locator('em').all_inner_texts()
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
    page.locator('[data-vs=opacity]').fill('100')
    assert page.locator('.vs-stage canvas').first.evaluate('e => getComputedStyle(e).opacity') == '1'
    name, overlay = download(page, 1, 'Overlay')
    assert name == 'my-street_other_overlay.png'
    assert np.array_equal(overlay[..., :3], expected[1].colour())
    page.locator('[data-vs=opacity]').fill('0')
    assert page.locator('.vs-stage canvas').first.evaluate('e => getComputedStyle(e).opacity') == '0'
    assert page.locator('[data-vs=percent]').inner_text() == '0 %'
    page.get_by_role('button', name='Confidence').click()
    assert page.locator('.vs-scale').first.is_visible()
    assert covered(page) == [1, 1]
    page.get_by_role('button', name='Classes').click()
    page.locator('.vs-legend button').first.click()
    share = next(iter(expected[0].shares().values()))
    assert covered(page) == pytest.approx([share, 1])
    assert not [url for url in asked if not url.startswith(('data:', 'blob:')) and 'heartbeat' not in url]


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_phone(open_page, folder, expected, scheme):
    """Nothing is wider than the screen, and a tap names the class."""
    page = open_page(**PHONE, color_scheme=scheme)
    segment(page, folder / 'my street.png')
    wide = page.evaluate("""() => [...document.querySelectorAll('.vs, .vs *')].filter((e) => {
        const box = e.getBoundingClientRect();
        return !e.closest('.vs-examples') && (box.left < 0 || box.right > innerWidth + 0.5);
    }).map((e) => e.className)""")
    assert wide == []
    assert page.evaluate('document.documentElement.scrollWidth') == 390
    page.locator('.vs-stage').first.scroll_into_view_if_needed()
    said = point(page, 0, 75, 45, (150, 90), tap=True)
    assert [name for name, _ in said] == [r.classes[r.labels[45, 75]] for r in expected]
    text, ground = page.evaluate("""() => ['color', 'backgroundColor'].map((key) =>
        getComputedStyle(document.querySelector(key === 'color' ? '.vs' : '.vs-panel'))[key])""")
    light = [sum(map(int, re.findall(r'\d+', colour)[:3])) for colour in (text, ground)]
    assert (light[0] < light[1]) == (scheme == 'light')


def test_mistakes_are_one_sentence_on_the_page(open_page, folder):
    page = open_page(**DESKTOP)
    for path, sentence in (
        ('broken.png', "image 'broken.png' is damaged or cut off"),
        ('heavy.png', 'heavy.png has 2.0 MB; this page takes up to 1 MB.'),
        ('first.pth', None),
    ):
        page.set_input_files('[data-vs=file]', folder / path)
        page.wait_for_function(
            "name => document.querySelector('[data-vs=error]').textContent.includes(name)", arg=path, timeout=20_000
        )
        said = page.locator('[data-vs=error]').inner_text()
        assert sentence is None or said == sentence
        assert '\n' not in said
        assert page.locator('.vs-panel').count() == 0
    page.locator('.vs-examples button').click()
    page.wait_for_selector('.vs-panel', timeout=60_000)
    assert page.locator('.vs-title span').first.inner_text().startswith('640 x 480 pixels')
    assert not page.locator('[data-vs=error]').is_visible()


def test_keys_move_the_point(open_page, folder):
    page = open_page(**DESKTOP)
    segment(page, folder / 'my street.png')
    page.locator('.vs-stage').first.focus()
    for key in ('ArrowRight', 'ArrowRight', 'ArrowUp'):
        page.keyboard.press(key)
    assert page.locator('.vs-readout').first.inner_text().endswith('at 78, 44')


def test_ctrl_c_ends_it_and_leaves_nothing(open_page, chromium, server, folder):
    """Last of the module: it stops the server. A page that is still open says so, in one sentence."""
    process, address = server
    context = chromium.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector('[data-vs=drop]')
    assert len(list((folder / 'temporary').glob('volo-seg-app-*'))) == 1
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip() == 'interrupted'
    assert list((folder / 'temporary').glob('volo-seg-app-*')) == []
    page.set_input_files('[data-vs=file]', folder / 'my street.png')
    page.wait_for_selector('[data-vs=error]:not([hidden])', timeout=20_000)
    assert 'does not answer' in page.locator('[data-vs=error]').inner_text()
    context.close()
