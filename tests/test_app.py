"""The page without a browser: what it computes, what it refuses, and what its server lets through."""

import base64
import gc
import http.client
import importlib.metadata
import json
import os
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import weakref
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from volo_seg.app import Model, open_models
from volo_seg.app.answers import VIEW, answer_image, describe_result, file_name, legend, read_upload, slug, view_grid
from volo_seg.app.models import name_models, split_name
from volo_seg.app.server import build_app, check_gradio, listen, serve
from volo_seg.commands import run
from volo_seg.errors import UserError
from volo_seg.inference.base import BasePredictor, Scores
from volo_seg.inference.result import Result

PALETTE = [[10, 20, 30], [200, 100, 0], [0, 0, 255]]
NAMES = ('road', '<b>sky</b>', 'car')


class Thirds(BasePredictor):
    """Labels by the blue value; counts how many of its calls run at once, and waits while it is told to."""

    def __init__(self):
        super().__init__(NAMES, PALETTE)
        self.running = self.most = 0
        self.made, self.go, self.lock = [], threading.Event(), threading.Lock()
        self.go.set()

    def _segment(self, batch, *, confidence, probabilities):
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.go.wait(60)
        scores = [Scores(image[..., 0] % 3, np.full(image.shape[:2], 0.5, np.float32)) for image in batch]
        self.made += [weakref.ref(score.labels) for score in scores]
        with self.lock:
            self.running -= 1
        return scores


def png(image):
    return cv2.imencode('.png', image)[1].tobytes()


def text_of(data):
    return base64.b64encode(data).decode()


def noise(seed, shape=(24, 40, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# ---- what the page shows


@settings(max_examples=30, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_legend_is_the_shares_sorted(labels):
    rows = legend(Result(np.zeros((*labels.shape, 3), np.uint8), labels, NAMES, np.array(PALETTE, np.uint8)))
    shares = [row['share'] for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert {row['id']: row['share'] for row in rows} == {i: (labels == i).mean() for i in np.unique(labels)}
    assert all(row['name'] == NAMES[row['id']] and row['colour'] == PALETTE[row['id']] for row in rows)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 3000))
def test_view_grid_is_inside_and_even(height, width, longest):
    for places, side in zip(view_grid(height, width, longest=longest), (height, width), strict=True):
        assert 1 <= len(places) <= longest or side <= longest
        assert places[0] >= 0
        assert places[-1] < side
        assert (np.diff(places) > 0).all()
        if max(height, width) <= longest:
            assert places.tolist() == list(range(side))


@pytest.mark.parametrize('classes', [3, 300])
def test_what_is_drawn_and_the_file_are_the_labels(classes):
    kind = np.uint8 if classes <= 256 else np.int32
    labels = np.random.default_rng(0).integers(0, classes, (7, 11)).astype(kind)
    sure = np.linspace(0, 1, 77, dtype=np.float32).reshape(7, 11)
    palette = np.zeros((classes, 3), np.uint8)
    result = Result(np.zeros((7, 11, 3), np.uint8), labels, tuple(map(str, range(classes))), palette, sure)
    told = describe_result(result, name='a model/b', seconds=1.5)
    read = cv2.imdecode(np.frombuffer(base64.b64decode(told['file']), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read, labels)
    drawn = np.frombuffer(zlib.decompress(base64.b64decode(told['labels'])), f'<u{told["bytes"]}')
    assert np.array_equal(drawn.reshape(7, 11), labels)
    sureness = np.frombuffer(zlib.decompress(base64.b64decode(told['confidence'])), np.uint8) / 255
    np.testing.assert_allclose(sureness.reshape(7, 11), sure, atol=0.5 / 255 + 1e-6)
    assert told['mean_confidence'] == pytest.approx(0.5)
    assert told['slug'] == 'a-model-b'


def test_without_confidence_there_is_none():
    result = Result(noise(1), noise(1)[..., 0] % 3, NAMES, np.array(PALETTE, np.uint8))
    told = describe_result(result, name='x', seconds=0)
    assert told['confidence'] is None
    assert told['mean_confidence'] is None


def test_a_model_without_confidence_is_found_out(monkeypatch):
    predictor = Thirds()
    whole = predictor._segment

    def labels_alone(batch, *, confidence, probabilities):
        if confidence:
            raise UserError('labels alone')
        return [Scores(score.labels) for score in whole(batch, confidence=False, probabilities=False)]

    monkeypatch.setattr(predictor, '_segment', labels_alone)
    monkeypatch.setattr('volo_seg.inference.load.open_predictor', lambda *a, **k: predictor)
    (model,) = open_models(['argmax.onnx'])
    assert not model.confidence
    assert answer_image(noise(0), [model], name='x')['models'][0]['confidence'] is None
    monkeypatch.setattr(predictor, '_segment', whole)
    assert open_models(['logits.onnx'])[0].confidence


def test_large_image_is_shown_smaller_and_filed_whole():
    image = noise(2, (3, 3 * VIEW, 3))
    answer = answer_image(image, [Model('m', Thirds())], name='wide.png')
    assert answer['picture']['size'] == [3 * VIEW, 3]
    assert answer['picture']['view'] == [VIEW, 1]
    model = answer['models'][0]
    assert len(zlib.decompress(base64.b64decode(model['labels']))) == VIEW
    read = cv2.imdecode(np.frombuffer(base64.b64decode(model['file']), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(read, image[..., 0] % 3)
    assert answer['stem'] == 'wide'


def test_names_of_files():
    assert file_name('..\\..\\C:\\a\nb.png') == 'ab.png'
    assert file_name('../../etc/passwd') == 'passwd'
    assert [file_name(x) for x in ('', None, 3, '/', '..')] == ['image'] * 4 + ['..']
    assert slug('..') == 'image'
    assert slug('a b/ü"<') == 'a-b-ü'
    assert len(file_name('x' * 500)) == 80


# ---- what is refused, in one sentence


def bomb(width, height):
    """A PNG whose header promises width x height, and nothing behind it."""
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', head), (b'IDAT', zlib.compress(bytes(1000))), (b'IEND', b'')]
    body = (struct.pack('>I', len(c)) + n + c + struct.pack('>I', zlib.crc32(n + c)) for n, c in chunks)
    return b'\x89PNG\r\n\x1a\n' + b''.join(body)


BAD = {
    'no image arrived': None,
    'no image arrived; choose one again': {'path': '/etc/passwd', 'meta': {'_type': 'gradio.FileData'}},
    'did not arrive whole': '/etc/passwd',
    'whole; send it again': 'AAAA<b>',
    'larger than the 0.01 MB': 'A' * 16000,
    'is empty': '',
    'has 60000 x 60000 pixels, and this page takes up to 0.1 megapixels': text_of(bomb(60000, 60000)),
    'damaged or cut off': text_of(png(noise(0))[:-600]),
    'a GIF': text_of(b'GIF89a' + bytes(100)),
    'no image of a known kind': text_of(b'nonsense, nonsense, nonsense'),
}


@pytest.mark.parametrize('part', BAD)
def test_bad_uploads_are_one_sentence(part):
    with pytest.raises(UserError) as caught:
        read_upload(BAD[part], name='x.png', max_pixels=100_000, max_bytes=10486)
    sentence = str(caught.value)
    assert part in sentence
    assert '\n' not in sentence
    assert '_IMAGE' not in sentence


def test_too_many_pixels_are_never_decoded(monkeypatch):
    monkeypatch.setattr('volo_seg.app.answers.decode_image', lambda *a, **k: pytest.fail('decoded'))
    with pytest.raises(UserError, match='megapixels'):
        read_upload(text_of(png(noise(0, (50, 50, 3)))), name='x', max_pixels=2499, max_bytes=10**6)


def test_names_of_models(tmp_path):
    odd = tmp_path / 'a=b.pth'
    odd.touch()
    assert split_name(str(odd)) == (None, str(odd))
    assert split_name('mine=x/y.pth') == ('mine', 'x/y.pth')
    assert split_name('x/k=1.pth') == (None, 'x/k=1.pth')
    pairs = [(None, 'a/iter_8.pth'), (None, 'b/iter_8.pth'), ('own', 'c/iter_8.pth'), (None, 'c/last.onnx')]
    assert name_models(pairs) == ['a/iter_8', 'b/iter_8', 'own', 'last']
    assert name_models([(None, 'published/volo.v2')]) == ['volo.v2']
    with pytest.raises(UserError, match="2 checkpoints would be called 'a/x'; name them"):
        name_models([(None, 'a/x.pth'), (None, 'a/x.onnx')])


def test_number_of_configs():
    with pytest.raises(UserError, match='2 configs for 3 checkpoints'):
        open_models(['a', 'b', 'c'], configs=['x', 'y'])


def test_missing_or_old_gradio_is_one_sentence(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, 'version', missing)
    with pytest.raises(UserError, match=r"needs the package gradio: pip install 'volo-seg\[app\]'"):
        check_gradio()
    monkeypatch.setattr(importlib.metadata, 'version', lambda name: '4.44.1')
    with pytest.raises(UserError, match=r'needs gradio 6, and 4.44.1 is installed'):
        check_gradio()


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['x.pth', '--max-pixels', '0'], '--max-pixels 0 must be 1 or more'),
        (['x.pth', '--max-upload', '0'], '--max-upload 0 must be'),
        (['x.pth', '--max-upload', 'inf'], '--max-upload inf must be'),
        (['x.pth', '--examples', '/nowhere'], "--examples '/nowhere' holds no images"),
        (['/nowhere/x.pth'], '/nowhere/x.pth'),
    ],
)
def test_mistakes_on_the_command_line(words, sentence, capsys):
    assert run('app', words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith('error: ')
    assert said.count('\n') == 1


def test_busy_port_is_one_sentence():
    with listen('127.0.0.1', 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match=r'cannot listen on 127.0.0.1 port \d+ \(Address already in use\)'):
            serve([Model('m', Thirds())], port=taken.getsockname()[1])
    with pytest.raises(UserError, match='cannot listen on 127.0.0.1 port 70000'), listen('127.0.0.1', 70000):
        pass


# ---- the server


class Site:
    """The page, served from a thread, and how a browser talks to it."""

    def __init__(self, folder, **limits):
        import uvicorn

        self.predictor, self.folder = Thirds(), folder
        example = folder / 'example.png'
        example.write_bytes(png(noise(99)))
        os.environ['GRADIO_TEMP_DIR'] = str(folder / 'temporary')
        app = build_app([Model('one', self.predictor)], examples=[example], **limits)
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={'sockets': [self.listener]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)

    def close(self):
        self.server.should_exit = True
        self.thread.join(20)

    def fetch(self, method, path, body=None, headers=None):
        """(status, body); the path is sent as it stands."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        connection.request(method, path, body=body, headers=headers or {})
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        self.headers = dict(reply.getheaders())
        return reply.status, data

    def join(self, session, event, data=()):
        body = {'data': list(data), 'event_data': event, 'fn_index': 0, 'session_hash': session, 'trigger_id': None}
        url = f'http://127.0.0.1:{self.port}/gradio_api/queue/join'
        request = urllib.request.Request(url, json.dumps(body).encode(), {'Content-Type': 'application/json'})
        return json.loads(urllib.request.urlopen(request, timeout=30).read())

    def wait(self, session):
        url = f'http://127.0.0.1:{self.port}/gradio_api/queue/data?session_hash={session}'
        for line in urllib.request.urlopen(url, timeout=60):
            message = json.loads(line[6:]) if line.startswith(b'data: ') else {}
            if message.get('msg') == 'process_completed':
                return message
        raise AssertionError('no answer')

    def ask(self, session, event, data=()):
        self.join(session, event, data)
        (answer,) = self.wait(session)['output']['data']
        return answer


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    before = os.environ.get('GRADIO_TEMP_DIR')
    site = Site(tmp_path_factory.mktemp('site'), max_pixels=100_000, max_bytes=200_000)
    yield site
    site.close()
    os.environ.pop('GRADIO_TEMP_DIR') if before is None else os.environ.update(GRADIO_TEMP_DIR=before)


def labels_of(answer):
    data = np.frombuffer(base64.b64decode(answer['models'][0]['file']), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)


def test_page_names_models_and_sends_nobody_elsewhere(site):
    status, body = site.fetch('GET', '/')
    assert status == 200
    assert b'volo-seg: one' in body
    assert b'example.png' in body
    assert os.fsencode(site.folder) not in body
    config = json.loads(body.split(b'window.gradio_config = ', 1)[1].split(b';</script>', 1)[0])
    assert config['analytics_enabled'] is False
    policy = site.headers['content-security-policy']
    assert "default-src 'self'" in policy
    assert 'http' not in policy


@pytest.mark.parametrize('path', [
    '/gradio_api/file=/etc/passwd',
    '/gradio_api/file=../../../../../../etc/passwd',
    '/gradio_api/file/etc/passwd',
    '/file=/etc/passwd',
    f'/gradio_api/file={__file__}',
    '/gradio_api/proxy=https://example.org/',
    '/assets/../../../../../../../../etc/passwd',
    '/assets/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd',
    '/assets/%5c..%5c..%5cetc%5cpasswd',
    '/static/%2e%2e/%2e%2e/%2e%2e/routes.py',
    '/static//etc/passwd',
    '/svelte/index.js',
    '/gradio_api/custom_component/1/client/component/index.js',
    '/gradio_api/info',
    '/gradio_api/openapi.json',
    '/gradio_api/runs',
    '/gradio_api/deep_link',
    '/gradio_api/vibe-code',
    '/gradio_api/upload_progress?upload_id=x',
    '/gradio_api/queue/status',
    '/monitoring',
    '/docs',
    '/openapi.json',
    '/login',
])  # fmt: skip
def test_nothing_but_the_page_is_served(site, path):
    status, body = site.fetch('GET', path)
    assert status in (403, 404)
    assert b'root:' not in body
    assert b'import' not in body


@pytest.mark.parametrize('path', ['upload', 'component_server', 'call/submit', 'run/submit', 'stream/x', 'vibe-edit'])
def test_nothing_but_an_image_is_taken(site, path):
    assert site.fetch('POST', f'/gradio_api/{path}', b'{}', {'Content-Type': 'application/json'})[0] == 404
    assert site.fetch('POST', '/', b'{}')[0] == 405


def test_answer_is_the_prediction(site):
    image = noise(3)
    answer = site.ask('plain', {'sequence': 7, 'name': '../my photo.png', 'image': text_of(png(image))})
    assert answer['sequence'] == 7
    assert answer['stem'] == 'my-photo'
    assert np.array_equal(labels_of(answer), image[..., 0] % 3)
    assert answer['models'][0]['name'] == 'one'


def test_example_is_picked_by_its_number(site):
    assert np.array_equal(labels_of(site.ask('example', {'example': 0})), noise(99)[..., 0] % 3)


@pytest.mark.parametrize('event', [
    {'image': '/etc/passwd'},
    {'image': {'path': '/etc/passwd', 'meta': {'_type': 'gradio.FileData'}}},
    {'image': [{'path': __file__, 'url': 'https://example.org/x.png', 'meta': {'_type': 'gradio.FileData'}}]},
    {'example': '/etc/passwd'},
    {'example': -1},
    {'example': True},
    {'example': 1},
    {'name': '/etc/passwd'},
    {},
    [],
    None,
])  # fmt: skip
def test_crafted_events_name_no_file(site, event):
    planted = {'path': '/etc/passwd', 'meta': {'_type': 'gradio.FileData'}}
    site.join('crafted', event, [planted])
    message = json.dumps(site.wait('crafted'))
    assert 'error' in message
    assert 'root:' not in message
    assert 'Traceback' not in message
    assert '"models"' not in message


@pytest.mark.parametrize('name', ['a\n<script>.png', 'ok.png'])
def test_broken_image_is_one_sentence_over_http(site, name):
    answer = site.ask('broken', {'sequence': 1, 'name': name, 'image': text_of(png(noise(0))[:-600])})
    assert set(answer) == {'sequence', 'error'}
    assert 'damaged or cut off' in answer['error']
    assert '\n' not in answer['error']


def test_bug_is_told_without_its_details(site, monkeypatch, capfd):
    monkeypatch.setattr(site.predictor, '_segment', lambda *a, **k: {}['secret detail'])
    answer = site.ask('bug', {'name': 'a.png', 'image': text_of(png(noise(0)))})
    assert answer['error'] == 'a.png could not be segmented; the reason is in the log of the server'
    assert 'secret detail' in capfd.readouterr().err


def test_large_bodies_are_refused(site):
    path, headers = '/gradio_api/queue/join', {'Content-Type': 'application/json'}
    connection = http.client.HTTPConnection('127.0.0.1', site.port, timeout=30)
    connection.putrequest('POST', path)
    connection.putheader('Content-Length', '1000000')
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
    status, _ = site.fetch('POST', path, iter([b'"' + b'x' * 100_000] * 6), headers)
    assert status in (400, 413)
    assert site.fetch('POST', path, b'{}', {**headers, 'Content-Length': 'many'})[0] in (400, 413)


def test_other_names_and_other_sites_are_refused(site):
    assert site.fetch('GET', '/', headers={'Host': 'evil.example:80'})[0] == 421
    assert site.fetch('GET', '/robots.txt', headers={'Host': f'localhost:{site.port}'})[0] == 200
    headers = {'Content-Type': 'application/json', 'Sec-Fetch-Site': 'cross-site'}
    assert site.fetch('POST', '/gradio_api/queue/join', b'{}', headers)[0] == 403


def test_a_page_for_others_answers_to_any_name():
    gate = build_app([Model('one', Thirds())], local=False)
    assert gate.refuse('GET', '/', {b'host': b'seg.example.org'}) is None
    assert gate.refuse('GET', '/', {}) is None


def test_users_get_their_own_and_one_network_runs(site):
    site.predictor.most = 0

    def one(seed):
        answer = site.ask(f'user{seed}', {'sequence': seed, 'image': text_of(png(noise(seed)))})
        return answer['sequence'] == seed and np.array_equal(labels_of(answer), noise(seed)[..., 0] % 3)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(10, 16)))
    assert site.predictor.most == 1


def test_queue_is_bounded(site):
    event = {'image': text_of(png(noise(0)))}
    site.predictor.go.clear()
    try:
        site.join('q0', event)
        while not site.predictor.running:
            time.sleep(0.01)
        for i in range(1, 9):
            site.join(f'q{i}', event)
        with pytest.raises(urllib.error.HTTPError) as caught:
            site.join('q9', event)
        assert caught.value.code == 503
    finally:
        site.predictor.go.set()
    assert all('models' in site.wait(f'q{i}')['output']['data'][0] for i in range(9))


def test_nothing_stays_behind(site):
    for seed in range(24):
        site.ask(f'rest{seed}', {'image': text_of(png(noise(seed)))})
    gc.collect()
    assert len(site.predictor.made) >= 24
    assert sum(made() is not None for made in site.predictor.made) == 0
    answers = [o for o in gc.get_objects() if type(o) is dict and {'picture', 'models', 'stem'} <= o.keys()]
    assert 1 <= len(answers) <= 18  # those of 16 visitors; one or two may be on their way out
    folder = os.environ['GRADIO_TEMP_DIR']
    assert [f for _, _, files in os.walk(folder) for f in files] == []
