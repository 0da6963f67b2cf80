"""Label Studio's ML-backend API: masks, labels, and what is fetched from where."""

import base64
import functools
import http.server
import json
import re
import threading
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from serving import Site, noise, png

from volo_seg.datasets.importers.drawing import brush
from volo_seg.errors import UserError
from volo_seg.serve.label_studio import ImageSource, Labelling, encode_brush
from volo_seg.serve.limits import Limits

CONFIG = """<View>
  <!-- the brush comes first --><Header value="x"/>
  <RectangleLabels name="boxes" toName="image"><Label value="road"/></RectangleLabels>
  <BrushLabels name="tag" toName="image">
    <Label value="Road" background="#FF0000"/><Label value="Other"/>
    <Label value="Vehicle" predicted_values="bus, Car"/>
  </BrushLabels>
  <Image name="image" value="$photo" zoom="true"/>
</View>"""
IMAGE = noise(5)
JSON = {'Content-Type': 'application/json'}


def converted(mask):
    """What label-studio-converter's ``mask2rle`` gives, written anew from its description: one run after the other."""
    flat = np.repeat(mask.ravel().astype(int) * 255, 4)
    bits = f'{flat.size:032b}00111' + ''.join(f'{size - 1:04b}' for size in (3, 4, 8, 16))
    for value, group in groupby(flat.tolist()):
        count = len(list(group))
        size = 3 if count <= 8 else 4 if count <= 16 else 8 if count <= 256 else 16
        for part in [2**16] * ((count - 1) // 2**16) + [(count - 1) % 2**16 + 1]:
            bits += '1' + f'{(3, 4, 8, 16).index(size):02b}' + f'{part - 1:0{size}b}' + f'{value:08b}'
    bits += '0' * (8 - len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 40))))
def test_the_code_is_that_of_the_converter(mask):
    code = encode_brush(mask)
    assert code == converted(mask)
    assert (brush(code, 'x', *mask.shape) == mask).all()


@pytest.mark.parametrize('count', [2**14 - 1, 2**14, 2**14 + 1, 2**15, 2**15 + 5])
def test_long_runs(count):
    mask = np.zeros((4, 10_000), bool)
    mask.ravel()[7 : 7 + count] = True
    assert encode_brush(mask) == converted(mask)
    assert (brush(encode_brush(mask), 'x', *mask.shape) == mask).all()


def test_the_code_of_the_sdk():
    """label-studio-sdk 2.1.2's ``mask2rle`` of the polygon in ``tests/datasets/test_importers.py``."""
    code = [0, 0, 3, 0, 57, 27, 254, 71, 0, 143, 255, 27, 128, 99, 63, 251, 96, 24, 191, 254, 216, 6, 51, 255, 182, 1]
    code += [139, 255, 239, 128, 98, 255, 251, 224, 24, 175, 255, 9, 128, 98, 191, 252, 62, 1, 134, 255, 241, 216, 4]
    assert encode_brush(brush([*code, 127, 249, 92, 0], 'x', 12, 16)) == [*code, 127, 249, 92, 0]


class Studio(http.server.BaseHTTPRequestHandler):
    """Label Studio as far as images go: /data/upload/, /data/local-files/, presigned storage, and access tokens."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get('Authorization')))
        where = {
            '/data/local-files?d=a.png': '/data/local-files/?d=a.png',
            '/data/upload/1/elsewhere.png': 'http://127.0.0.2:9/internal',
            '/data/upload/1/file.png': 'file:///etc/hostname',
            '/tasks/7/presign/?fileuri=s3%3A%2F%2Fbucket%2Fa.png': '/bucket/a.png?signature=x',
        }.get(self.path)
        if where:
            self.send_response(302)
            self.send_header('Location', where)
            body = b''
        else:
            denied = self.server.token and self.headers.get('Authorization') != self.server.token
            self.send_response(401 if denied else 404 if 'missing' in self.path else 200)
            body = b'x' * 300_000 if 'large' in self.path else png(IMAGE)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.server.asked.append((self.path, body))
        answer = json.dumps({'access': 'fresh'}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def studio():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Studio)
    server.asked, server.token = [], ''
    server.url = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(60)


@pytest.fixture(scope='module')
def site(studio):
    with Site(studio=studio.url) as site:
        site.post = lambda path, body: site.fetch('POST', path, json.dumps(body), JSON)
        yield site


def request(*images, config=CONFIG):
    """The documented body of ``/predict``."""
    tasks = [{'id': 7 + n, 'data': {'photo': image}, 'annotations': []} for n, image in enumerate(images)]
    params = {'login': None, 'password': None, 'context': None}
    return {'tasks': tasks, 'model_version': 'one', 'project': '3.1700000000', 'label_config': config, 'params': params}


def test_health_and_setup(site, capsys):
    assert json.loads(site.fetch('GET', '/health')[1]) == {'status': 'UP', 'model_class': 'one'}
    body = {'project': '3.1700000000', 'schema': CONFIG, 'hostname': 'http://evil.test', 'access_token': 'x'}
    status, answer = site.post('/setup', body)
    assert (status, json.loads(answer)) == (200, {'model_version': 'one'})
    status, answer = site.post('/setup', {**body, 'schema': CONFIG.replace('Road', 'Street').replace('Car', 'Tram')})
    assert status == 422 and "none of the labels 'Street, Other, Vehicle' is a class of the model" in answer.decode()
    assert 'Label Studio: project' in capsys.readouterr().err


def test_predictions_are_the_labels(site):
    status, body = site.post('/predict', request('/data/upload/1/a.png', f'data:image/png;base64,{base64.b64encode(png(IMAGE[:7])).decode()}'))  # fmt: skip  # noqa: E501
    assert status == 200, body
    first, second = json.loads(body)['results']
    for prediction, image in ((first, IMAGE), (second, IMAGE[:7])):
        labels = image[..., 0] % 3
        assert prediction['model_version'] == 'one' and prediction['score'] == 0.5
        assert [region['value']['brushlabels'] for region in prediction['result']] == [['Road'], ['Vehicle']]
        for region, number in zip(prediction['result'], (0, 2), strict=True):
            assert (region['from_name'], region['to_name'], region['type']) == ('tag', 'image', 'brushlabels')
            assert (region['original_width'], region['original_height']) == labels.shape[::-1]
            assert region['value']['format'] == 'rle' and region['image_rotation'] == 0 and region['score'] == 0.5
            assert (brush(region['value']['rle'], 'x', *labels.shape) == (labels == number)).all()
    assert len({region['id'] for region in first['result'] + second['result']}) == 4


@pytest.mark.parametrize(
    ('image', 'paths'),
    [
        ('/data/upload/1/a%20b.png', ['/data/upload/1/a%20b.png']),
        ('upload/1/a.png', ['/data/upload/1/a.png']),
        ('/data/local-files?d=a.png', ['/data/local-files?d=a.png', '/data/local-files/?d=a.png']),
        ('s3://bucket/a.png', ['/tasks/7/presign/?fileuri=s3%3A%2F%2Fbucket%2Fa.png', '/bucket/a.png?signature=x']),
        ('{url}/data/x.png?token=1', ['/data/x.png?token=1']),
        ('//evil.test/a.png', ['/evil.test/a.png']),
    ],
)
def test_the_token_goes_to_label_studio(site, studio, image, paths):
    studio.asked.clear()
    status, body = site.post('/predict', request(image.format(url=studio.url)))
    assert status == 200, body
    assert studio.asked == [(path, 'Token secret') for path in paths]


@pytest.mark.parametrize(
    ('image', 'reason'),
    [
        ('http://127.0.0.2:9/a.png?secret', r"'http://127.0.0.2:9/a.png' is neither of .* nor of a host of --image-ho"),
        ('http://127.0.0.1:9/a.png', 'is neither of'),
        ('http://user@127.0.0.1:{port}/a.png', 'is neither of'),
        ('file:///etc/hostname', "'file:///etc/hostname' is neither of"),
        ('ftp://127.0.0.1/a', 'is neither of'),
        ('a.png', 'is neither of'),
        ('/data/upload/1/elsewhere.png', "'http://127.0.0.2:9/internal' is neither of"),
        ('/data/upload/1/file.png', r"'file:///etc/hostname' is neither of|is not allowed"),
        ('/data/upload/1/missing.png', r"missing.png' cannot be fetched \(HTTP Error 404"),
        ('/data/upload/1/large.png', r"large.png' is larger than 0.19 MB \(--max-upload\)"),
        ('data:image/png;base64,' + 'A' * 300_000, 'is larger than 0.19 MB'),
        ('data:image/png,x', 'is not base64'),
        ('data:image/png;base64,!', 'is not base64'),
        ('data:image/png;base64,eHh4', 'image of task 7'),
        (17, "it has no image in its data at 'photo', which the labelling configuration names"),
    ],
)
def test_what_is_not_fetched(site, studio, image, reason):
    image = image.format(port=studio.server_port) if isinstance(image, str) else image
    status, sentence = site.detail('POST', '/predict', json.dumps(request(image)), JSON)
    assert status == 422 and sentence.startswith('task 7: ') and re.search(reason, sentence), sentence
    # beside an image that is fine, it is the failure of its task alone
    status, body = site.post('/predict', request('/data/upload/1/a.png', image))
    good, bad = json.loads(body)['results']
    assert status == 200 and len(good['result']) == 2 and bad['result'] == [] and 'score' not in bad
    assert re.search(reason.replace('task 7', 'task 8'), bad['error'])


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'tasks': 3}, 'the request has no list `tasks`'),
        ({'label_config': '<View>'}, 'cannot be read as XML'),
        ({'label_config': None}, 'cannot be read as XML'),
        ({'label_config': '<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>'}, 'declares entities'),
        ({'label_config': '<View><BrushLabels name="a" toName="b"/></View>'}, 'has no <BrushLabels> for an <Image>'),
    ],
)
def test_requests_that_are_refused(site, change, reason):
    status, sentence = site.detail('POST', '/predict', json.dumps({**request(), **change}), JSON)
    assert status == 422 and reason in sentence


def test_bodies_that_are_refused(site):
    for body, status, reason in (('[1]', 422, 'not an object'), ('{', 422, 'not JSON'), ('[' * 200_000, 422, 'JSON')):
        found, sentence = site.detail('POST', '/predict', body, JSON)
        assert (found, reason in sentence) == (status, True), sentence
    assert site.detail('POST', '/predict', ' ' * 400_001, JSON) == (413, 'the body is larger than 0.38 MB')
    assert site.fetch('POST', '/predict', json.dumps(request()), JSON) == (200, b'{"results":[]}')


def test_a_personal_access_token_is_exchanged(studio):
    studio.asked.clear()
    studio.token = 'Bearer fresh'
    source = ImageSource(studio.url + '/', Limits(), token='head.body.sign', hosts=())
    assert source.read('/data/upload/1/a.png') == source.read('/data/upload/1/a.png') == png(IMAGE)
    paths = [path for path, _ in studio.asked]
    assert paths == ['/api/token/refresh', '/data/upload/1/a.png', '/data/upload/1/a.png']
    assert studio.asked[0][1] == {'refresh': 'head.body.sign'}
    with pytest.raises(UserError, match='401.*set the token of a user who may see it in LABEL_STUDIO_API_KEY'):
        ImageSource(studio.url, Limits(), token='old').read('/data/upload/1/a.png')
    studio.token = ''


def test_other_hosts_get_no_token(studio):
    asked = studio.url.replace('127.0.0.1', 'localhost')
    source = ImageSource(studio.url, Limits(), token='secret', hosts=['LOCALHOST'])
    studio.asked.clear()
    assert source.read(f'{asked}/a.png') == png(IMAGE)
    assert studio.asked == [('/a.png', None)]


@pytest.mark.parametrize('url', ['localhost:8080', 'file:///x', 'http://', 'http://a@b', 'http://a:x', 'http://a/?b'])
def test_addresses_that_are_refused(url):
    with pytest.raises(UserError, match='is not an address; give one such as http://localhost:8080'):
        ImageSource(url, Limits())


def test_labels_by_class():
    parse = functools.partial(Labelling.parse, classes=('car', 'bus', 'Road surface'))
    config = '<View><Image name="i" value="$x"/><BrushLabels name="b" toName="i">{}</BrushLabels></View>'
    labels = '<Label value="CAR"/><Label value="road" predicted_values="road surface"/>'
    found = parse(config.format(labels))
    assert (found.labels, found.key, found.from_name, found.to_name) == ({0: 'CAR', 2: 'road'}, 'x', 'b', 'i')
    assert parse(config.format('<Label value="v" predicted_values="car,bus"/>')).labels == {0: 'v', 1: 'v'}


def test_without_the_flag_there_is_no_such_api():
    with Site() as site:
        assert site.fetch('GET', '/health')[0] == site.fetch('POST', '/predict', '{}', JSON)[0] == 404
