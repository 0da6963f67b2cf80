"""The HTTP API: answers, errors, access, and paths."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from serving import NAMES, PALETTE, PNG, Site, noise, png

from volo_seg.serve.access import LOCAL_HOSTS, Access
from volo_seg.serve.examples import find_examples, open_examples
from volo_seg.serve.limits import Limits, file_name


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('examples')
    (folder / 'street.png').write_bytes(png(noise(99, (300, 30, 3))))
    with Site(examples=open_examples(find_examples(folder, Limits()), Limits())) as site:
        site.folder = folder
        yield site


def form(content, *, name='image', file='x.png', more=b''):
    """(body, headers) of a form with one file."""
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode()
    return more + head + content + b'\r\n--XX--\r\n', {'Content-Type': 'multipart/form-data; boundary=XX'}


# ---- answers


def test_each_output_is_the_prediction(site):
    image = noise(3)
    labels = image[..., 0] % 3
    for headers, query in (({'Accept': 'image/png'}, ''), ({}, '?output=labels')):
        status, body = site.segment(image, query, headers)
        assert (status, site.headers['content-type']) == (200, 'image/png')
        assert np.array_equal(np.array(Image.open(io.BytesIO(body))), labels)
    status, body = site.segment(image, headers={'Accept': 'application/x-npz'})
    found = np.load(io.BytesIO(body))
    assert np.array_equal(found['labels'], labels)
    assert (found['confidence'] == 0.5).all()
    status, body = site.segment(image, '?opacity=1', {'Accept': 'image/png; kind=overlay'})
    assert np.array_equal(np.array(Image.open(io.BytesIO(body))), np.array(PALETTE, np.uint8)[labels])
    answer = json.loads(site.segment(image)[1])
    assert (answer['model'], answer['width'], answer['height']) == ('one', 40, 24)
    assert {row['id']: row['share'] for row in answer['classes']} == {i: (labels == i).mean() for i in range(3)}
    assert set(answer['classes'][0]) == {'id', 'name', 'colour', 'share'}


def test_a_form_and_a_raw_body_give_the_same(site):
    content = png(noise(4))
    body, headers = form(content)
    asked = [site.fetch('POST', '/v1/segment?output=labels', body, headers)]
    asked += [site.segment(content, '?output=labels&model=one', {'Content-Type': kind})
              for kind in ('image/anything', 'application/octet-stream', '')]  # fmt: skip
    asked.append(site.segment(iter([content[:50], content[50:]]), '?output=labels'))
    assert {status for status, _ in asked} == {200}
    assert len({answer for _, answer in asked}) == 1


def test_models_examples_health_metrics_and_description(site):
    told = json.loads(site.fetch('GET', '/v1/models')[1])
    assert told['models'][0]['name'] == 'one'
    assert [row['name'] for row in told['models'][0]['classes']] == list(NAMES)
    assert (told['max_pixels'], told['max_bytes']) == (100_000, 200_000)
    assert json.loads(site.fetch('GET', '/v1/examples')[1]) == ['street.png']
    assert site.fetch('GET', '/v1/examples/0')[1] == (site.folder / 'street.png').read_bytes()
    assert Image.open(io.BytesIO(site.fetch('GET', '/v1/examples/0?thumbnail=true')[1])).size == (24, 240)
    assert json.loads(site.fetch('GET', '/healthz')[1]) == {'status': 'ok'}
    before = site.metric('volo_seg_requests_total{path="/v1/models",status="200"}')
    site.fetch('GET', '/v1/models')
    assert site.metric('volo_seg_requests_total{path="/v1/models",status="200"}') == before + 1
    assert site.metric('process_resident_memory_bytes') > 0
    status, body = site.fetch('GET', '/openapi.json')
    document = json.loads(body)
    content = document['paths']['/v1/segment']['post']['responses']['200']['content']
    assert {'application/json', 'image/png', 'application/x-npz'} <= set(content)
    assert set(document['paths']) == {
        '/v1/segment', '/v1/models', '/v1/examples', '/v1/examples/{index}', '/healthz', '/metrics'
    }  # fmt: skip
    assert b'http' not in body.replace(b'HTTPValidationError', b'')


def test_the_page_asks_nobody_else(site):
    for path in ('/', '/app.js', '/style.css', '/icon.svg'):
        status, body = site.fetch('GET', path)
        assert status == 200
        assert b'https://' not in body
        assert b'style=' not in body
        policy = site.headers['content-security-policy']
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert 'unsafe' not in policy
        assert site.headers['x-content-type-options'] == 'nosniff'
        assert site.headers['referrer-policy'] == 'no-referrer'
        assert not [name for name in site.headers if name.startswith('access-control')]
        assert 'server' not in site.headers


# ---- errors, in one sentence


def bomb(width, height):
    """A PNG whose header promises width x height, and nothing behind it."""
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    chunks = [(b'IHDR', head), (b'IDAT', zlib.compress(bytes(1000))), (b'IEND', b'')]
    body = (struct.pack('>I', len(c)) + n + c + struct.pack('>I', zlib.crc32(n + c)) for n, c in chunks)
    return b'\x89PNG\r\n\x1a\n' + b''.join(body)


WHOLE = png(noise(0))
PATH = '/v1/segment'
BAD = {
    'is empty': (400, PATH, b'', PNG),
    'is damaged or cut off': (400, PATH, WHOLE[:-600], PNG),
    'a GIF': (415, PATH, b'GIF89a' + bytes(100), PNG),
    'not an image of a known format': (415, PATH, b'/etc/passwd', PNG),
    "'b.png' is damaged": (400, PATH, *form(WHOLE[:-600], file='/a/b.png')),
    'multipart body cannot be read: Invalid': (400, PATH, *form(WHOLE, more=b'nonsense')),
    'cannot be read: Missing boundary': (400, PATH, b'', {'Content-Type': 'multipart/form-data'}),
    'Too many files': (400, PATH, *form(WHOLE, more=form(WHOLE)[0][:-8])),
    "model 'two' is not served; choose from one": (404, PATH + '?model=two', WHOLE, PNG),
    'Accept names no output': (406, PATH, WHOLE, {**PNG, 'Accept': 'text/html'}),
    'has 60000 x 60000 pixels, more than the limit of 100000': (413, PATH, bomb(60000, 60000), PNG),
    'larger than 0.19 MB': (413, PATH, bytes(200_001), PNG),
    'larger than 0.19': (413, PATH, *form(bytes(200_001))),
    'larger than 0.1': (413, PATH, iter([bytes(100_000)] * 30), PNG),
    'the body is application/json': (415, PATH, b'{"path": "/etc/passwd"}', {'Content-Type': 'application/json'}),
    'the body is image/png; send': (415, PATH, zlib.compress(WHOLE), {**PNG, 'Content-Encoding': 'deflate'}),
    'has no file `image`': (422, PATH, *form(WHOLE, name='picture')),
    "query parameter 'output'": (422, PATH + '?output=../x', WHOLE, PNG),
    "query parameter 'opacity'": (422, PATH + '?opacity=nan', WHOLE, PNG),
    "query parameter 'masks'": (422, PATH + '?masks=all', WHOLE, PNG),
    "query parameter 'include'": (422, PATH + '?include=labels&include=x', WHOLE, PNG),
}


@pytest.mark.parametrize('part', BAD)
def test_bad_requests_are_one_sentence(site, part):
    status, *request = BAD[part]
    found, sentence = site.detail('POST', *request)
    assert part in sentence
    assert found == status
    assert '_IMAGE' not in sentence
    assert site.segment(noise(1))[0] == 200


def test_too_many_pixels_are_never_decoded(site, monkeypatch):
    monkeypatch.setattr('cv2.imdecode', lambda *a: pytest.fail('decoded'))
    status, sentence = site.detail('POST', PATH, png(np.zeros((400, 300, 3), np.uint8)), PNG)
    assert (status, sentence) == (413, "image 'image' has 300 x 400 pixels, more than the limit of 100000")


def test_lack_of_memory_is_413(site, monkeypatch):
    labels_alone = site.predictor._segment

    def refuse(batch, **wanted):
        if wanted['confidence']:
            raise MemoryError
        return labels_alone(batch, **wanted)

    monkeypatch.setattr(site.predictor, '_segment', refuse)
    assert site.detail('POST', PATH + '?include=confidence', WHOLE, PNG)[0] == 413


def test_a_bug_stays_in_the_log(site, monkeypatch, caplog):
    def fail(batch, **wanted):
        raise RuntimeError('secret detail')

    monkeypatch.setattr(site.predictor, '_segment', fail)
    status, sentence = site.detail('POST', PATH, WHOLE, PNG)
    assert status == 500
    assert 'secret' not in sentence
    assert 'is in the log of the server' in sentence
    assert site.headers['x-content-type-options'] == 'nosniff'


def test_names_of_files():
    assert file_name('..\\..\\C:\\a\nb.png') == 'ab.png'
    assert file_name('../../etc/passwd') == 'passwd'
    assert [file_name(x) for x in ('', None, '/', '..')] == ['image'] * 3 + ['..']
    assert len(file_name('x' * 500)) == 80


# ---- access


@pytest.mark.parametrize('path', [
    '/etc/passwd',
    '//etc/passwd',
    '/../../../../../../../../etc/passwd',
    '/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd',
    '/%2e%2e/%2e%2e/app.py',
    '/%2e%2e/app.py',
    '/../app.py',
    '/%5c..%5c..%5cetc%5cpasswd',
    '/app.py',
    '/__init__.py',
    '/static/app.js',
    f'/{__file__}',
    '/%00',
    '/app.js%00',
    '/v1/examples/1',
    '/v1/examples/-1',
    '/v1/examples/0/..%2f..',
    '/docs',
    '/redoc',
    '/login',
    'http://127.0.0.1/v1/models',
])  # fmt: skip
def test_no_other_path_is_served(site, path):
    status, sentence = site.detail('GET', path)
    assert status == 404
    assert 'root:' not in sentence


def test_examples_are_numbers_and_methods_are_checked(site):
    assert site.detail('GET', '/v1/examples/..%2fx')[0] == 404
    assert site.detail('GET', '/v1/examples/x')[0] == 422
    for method, path in (('POST', '/'), ('POST', '/v1/models'), ('PUT', PATH), ('GET', PATH), ('DELETE', '/app.js')):
        assert site.detail(method, path)[0] == 405
    assert site.detail('OPTIONS', PATH, None, {'Origin': f'http://127.0.0.1:{site.port}'})[0] == 405


HOSTS = {
    'localhost': True, 'LocalHost:80': True, '127.0.0.1': True, '127.0.0.1:7860': True, '[::1]': True, '[::1]:9': True,
    '': False, 'evil.com': False, 'localhost.evil.com': False, 'evil.com:localhost': False, 'localhost.': False,
    '127.0.0.1:80:evil.com': False, '127.0.0.1:': False, '127.0.0.1:x': False, '127.0.0.1:123456': False,
    '127.0.0.1.nip.io': False, '127.1': False, '0.0.0.0': False, '2130706433': False, '0x7f.1': False, '::1': False,
    '[::1].evil.com': False, '[::1]evil': False, '[0:0:0:0:0:0:0:1]': False, '[::ffff:127.0.0.1]': False, '[::1': False,
    'user@localhost': False, 'localhost@evil.com': False, 'user:pw@127.0.0.1': False, 'localhost/x': False,
    ' localhost': False, 'localhost\t': False, 'localhost#': False, 'localhost,evil.com': False,
    'l\u00f6calhost': False, '127.0.0.\u0661': False, 'localhost:\u0668': False,
}  # fmt: skip
ORIGINS = {
    'http://localhost:7860': True, 'https://localhost:7860': True, 'HTTP://LOCALHOST:7860': True,
    'http://localhost': False, 'http://localhost:80': False, 'http://127.0.0.1:7860': False, 'null': False, '': False,
    'http://evil.com': False, 'http://localhost:7860.evil.com': False, 'http://localhost:7860/': False,
    'http://evil.com/http://localhost:7860': False, 'http://user@localhost:7860': False, 'localhost:7860': False,
    'file://localhost:7860': False, 'http://localhost:7860 http://evil.com': False, 'http://[::1]:7860': False,
}  # fmt: skip


@pytest.mark.parametrize('host', HOSTS)
def test_host(host):
    refused = Access(LOCAL_HOSTS).refuse('GET', [(b'host', host.encode('utf-8'))])
    assert (refused is None) == HOSTS[host]
    assert refused is None or refused[0] == 421


@pytest.mark.parametrize('origin', ORIGINS)
@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_origin(origin, method):
    refused = Access(LOCAL_HOSTS).refuse(method, [(b'host', b'localhost:7860'), (b'origin', origin.encode())])
    assert (refused is None) == ORIGINS[origin]
    assert refused is None or refused[0] == 403


def test_other_rules_of_access():
    local, host = Access(LOCAL_HOSTS), (b'host', b'localhost')
    assert local.refuse('GET', [])[0] == 421
    assert local.refuse('GET', [host, host])[0] == 421
    assert local.refuse('GET', [host, (b'origin', b'http://localhost'), (b'origin', b'http://evil.com')])[0] == 403
    for site, accepted in (('same-origin', True), ('none', True), ('cross-site', False), ('same-site', False)):
        asked = [host, (b'sec-fetch-site', site.encode())]
        assert (local.refuse('POST', asked) is None) == accepted
        assert local.refuse('GET', asked) is None
    for name in ('seg.example.org', 'seg.example.org:443', '[fe80::1]:80'):
        assert Access(None).refuse('GET', [(b'host', name.encode())]) is None
        assert local.refuse('GET', [(b'host', name.encode())])[0] == 421
    assert Access(None).refuse('GET', [(b'host', b'a:80:b')])[0] == 421
    assert Access([*LOCAL_HOSTS, 'Seg.example.org']).refuse('GET', [(b'host', b'seg.example.org')]) is None


def test_refused_requests_are_answered(site):
    assert site.detail('GET', '/', None, {'Host': '127.0.0.1:80:evil.com'})[0] == 421
    assert site.headers['x-content-type-options'] == 'nosniff'
    assert site.detail('POST', PATH, WHOLE, {**PNG, 'Origin': 'http://evil.com'})[0] == 403
    assert site.detail('POST', PATH, WHOLE, {**PNG, 'Sec-Fetch-Site': 'cross-site'})[0] == 403
    assert site.segment(WHOLE, headers={'Origin': f'http://127.0.0.1:{site.port}'})[0] == 200
