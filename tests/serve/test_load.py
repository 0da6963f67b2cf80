"""Batches, the queue, slow and aborted requests, memory, and the end of the server."""

import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from serving import PNG, Site, Thirds, noise, png, until

from volo_seg.commands import run
from volo_seg.errors import UserError
from volo_seg.serve import server as server_module
from volo_seg.serve.batching import Batcher
from volo_seg.serve.metrics import Metrics
from volo_seg.serve.models import Model, name_models, open_models, split_name
from volo_seg.serve.server import listen


def labels_of(body):
    return np.array(Image.open(io.BytesIO(body)))


def head(length, *, path='/v1/segment?output=labels', more=''):
    """The head of a request, as bytes."""
    return (
        f'POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n{more}\r\n'
    ).encode()


def connect(site, data=b''):
    connection = socket.create_connection(('127.0.0.1', site.port), timeout=30)
    connection.sendall(data)
    return connection


def answer_of(connection):
    """(status, detail) of the JSON answer on a socket, which the server then closes properly."""
    data = b''
    while part := connection.recv(65536):
        data += part
    start, _, body = data.partition(b'\r\n\r\n')
    return int(start.split()[1]), json.loads(body)['detail']


def ask_together(site, images, *, query='?output=labels'):
    """Hold the network until all of ``images`` wait, then return the answers."""
    site.predictor.go.clear()
    with ThreadPoolExecutor(len(images) + 1) as pool:
        first = pool.submit(site.segment, noise(99, (8, 8, 3)))
        until(lambda: site.predictor.running)
        answers = [pool.submit(site.segment, image, query) for image in images]
        until(lambda: site.metric('volo_seg_images_in_hand') == len(images) + 1)
        time.sleep(0.05)
        site.predictor.go.set()
        assert first.result()[0] == 200
        return [answer.result() for answer in answers]


# ---- batches


def test_images_of_one_size_go_together_and_get_their_own():
    images = [noise(seed, (24, 40, 3) if seed % 3 else (16, 16, 3)) for seed in range(12)]
    with Site(batch_size=4) as site:
        for (status, body), image in zip(ask_together(site, images), images, strict=True):
            assert status == 200
            assert np.array_equal(labels_of(body), image[..., 0] % 3)
        assert site.predictor.batches[0] == 1
        assert sorted(site.predictor.batches[1:]) == [4, 4, 4]
        assert site.predictor.most == 1
        assert site.metric('volo_seg_batch_images_count') == 4


def test_batches_of_one_are_the_default_and_networks_run_one_at_a_time():
    with Site() as site:
        ask_together(site, [noise(seed) for seed in range(6)])
        assert site.predictor.batches == [1] * 7
        assert site.predictor.most == 1


def test_with_and_without_confidence_do_not_mix():
    with Site(batch_size=8) as site:
        site.predictor.go.clear()
        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(site.segment, noise(i), '?include=confidence' * (i % 2)) for i in range(5)]
            until(lambda: site.metric('volo_seg_images_in_hand') == 5)
            time.sleep(0.05)
            site.predictor.go.set()
            answers = [json.loads(one.result()[1]) for one in asked]
        assert [answer.get('mean_confidence') for answer in answers] == [None, 0.5, None, 0.5, None]


def test_a_lone_request_does_not_wait_and_a_batch_waits_briefly(monkeypatch):
    monkeypatch.setattr('volo_seg.serve.batching.JOIN_SECONDS', 60)
    predictor = Thirds(batch_size=2)
    batcher, model = Batcher(queue=4, metrics=Metrics()), Model('m', predictor)
    with batcher.announce():
        lone = batcher.submit(model, noise(0), confidence=False)
    assert lone.future.result(10)
    with batcher.announce():
        pair = [batcher.submit(model, noise(1), confidence=False)]
        time.sleep(0.1)
        assert not pair[0].future.done()
        pair.append(batcher.submit(model, noise(2), confidence=False))
        assert [job.future.result(10)[0].labels[0, 0] for job in pair] == [noise(i)[0, 0, 0] % 3 for i in (1, 2)]
    assert predictor.batches == [1, 2]
    monkeypatch.setattr('volo_seg.serve.batching.JOIN_SECONDS', 0.01)
    with batcher.announce():
        assert batcher.submit(model, noise(3), confidence=False).future.result(10)
    batcher.close()
    assert not batcher.thread.is_alive()


def test_an_image_that_fails_in_a_batch_fails_alone(monkeypatch):
    with Site(batch_size=4) as site:
        whole = site.predictor._segment

        def refuse_dark(batch, **wanted):
            if any(image.max() == 0 for image in batch):
                raise UserError('too dark')
            return whole(batch, **wanted)

        monkeypatch.setattr(site.predictor, '_segment', refuse_dark)
        answers = ask_together(site, [noise(1), np.zeros((24, 40, 3), np.uint8), noise(2)])
        assert [status for status, _ in answers] == [200, 422, 200]
        assert json.loads(answers[1][1]) == {'detail': "image 'image' cannot be segmented: too dark"}


# ---- the queue


def test_a_full_queue_answers_503():
    with Site(queue=3) as site:
        site.predictor.go.clear()
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(site.segment, noise(i), '?output=labels') for i in range(3)]
            until(lambda: site.metric('volo_seg_images_in_hand') == 3)
            status, body = site.segment(noise(9))
            assert status == 503
            assert '3 requests are in hand' in json.loads(body)['detail']
            assert site.headers['retry-after'] == '1'
            assert site.fetch('GET', '/healthz')[0] == 200
            site.predictor.go.set()
            for i, one in enumerate(asked):
                assert np.array_equal(labels_of(one.result()[1]), noise(i)[..., 0] % 3)
        assert site.segment(noise(9))[0] == 200


def test_who_hangs_up_frees_the_place():
    with Site(queue=2) as site:
        site.predictor.go.clear()
        content = png(noise(0))
        running = connect(site, head(len(content)) + content)
        until(lambda: site.predictor.running)
        waiting = connect(site, head(len(content)) + content)
        until(lambda: site.metric('volo_seg_images_in_hand') == 2)
        assert site.segment(noise(1))[0] == 503
        waiting.close()
        until(lambda: site.metric('volo_seg_images_in_hand') == 1)
        running.close()
        until(lambda: site.metric('volo_seg_images_in_hand') == 0)
        site.predictor.go.set()
        assert site.segment(noise(1))[0] == 200
        # the one that waited was never segmented
        assert site.predictor.batches == [1, 1]
        assert site.metric('volo_seg_requests_total{path="/v1/segment",status="499"}') == 2


def test_who_waits_too_long_gets_503():
    with Site(seconds=0.3) as site:
        site.predictor.go.clear()
        status, sentence = site.detail('POST', '/v1/segment', png(noise(0)), PNG)
        assert status == 503
        assert 'wait for more than 0.3 s' in sentence
        assert site.headers['retry-after'] == '1'


# ---- large, slow and stalled clients


@pytest.mark.parametrize('size', [400_000, 50_000_000])
@pytest.mark.parametrize('path', ['/v1/segment', '/v1/segment?model=x', '/nowhere'])
def test_a_body_that_is_not_wanted_still_gets_its_answer(path, size):
    """The client sends everything before it reads; the connection is closed, not reset."""
    with Site() as site, connect(site, head(size, path=path)) as connection:
        for _ in range(size // 100_000):
            connection.sendall(bytes(100_000))
        assert answer_of(connection)[0] == (404 if path != '/v1/segment' else 413)


def test_the_answer_comes_before_the_body_is_complete():
    with Site() as site, connect(site, head(10**9)) as connection:
        assert b'HTTP/1.1 413' in connection.recv(4096)
    with Site() as site, connect(site, head(10**9, more='Expect: 100-continue\r\n')) as connection:
        assert answer_of(connection)[0] == 413


def test_who_waits_for_100_continue_gets_it():
    content = png(noise(0))
    with Site() as site, connect(site, head(len(content), more='Expect: 100-continue\r\n')) as connection:
        assert connection.recv(4096) == b'HTTP/1.1 100 Continue\r\n\r\n'
        connection.sendall(content)
        assert b'HTTP/1.1 200' in connection.recv(4096)


def test_a_slow_body_is_408():
    with Site(seconds=0.5) as site, connect(site, head(1000) + b'x') as connection:
        status, sentence = answer_of(connection)
        assert (status, sentence) == (408, 'the body did not arrive within 0.5 s')


def test_what_is_not_http_is_400():
    with Site() as site:
        start = b'GET / HTTP/1.1\r\n'
        rest = (b'\r\n', b'Host: a\r\nHost: b\r\n\r\n', b'Host: localhost\r\nX: ' + b'x' * 200_000)
        for data in (b'nonsense\r\n\r\n', *(start + more for more in rest), head('many'), head('5, 6')):
            with connect(site, data) as connection:
                assert answer_of(connection) == (400, 'the request is not valid HTTP/1.1')
        assert site.fetch('GET', '/')[0] == 200


def test_a_malformed_body_is_400_and_frees_its_request(caplog):
    start = head(0, path='/nowhere').replace(b'Content-Length: 0', b'Transfer-Encoding: chunked')
    for path in (b'/v1/segment', b'/nowhere'):
        with Site() as site, connect(site, start.replace(b'/nowhere', path) + b'5\r\nabcde\r\n') as connection:
            time.sleep(0.1)
            connection.sendall(b'zz\r\n')
            data = b''.join(iter(lambda: connection.recv(4096), b''))  # noqa: B023
            assert data.startswith(b'HTTP/1.1 404' if path == b'/nowhere' else b'HTTP/1.1 400')
            until(lambda: not site.server.server_state.tasks)  # noqa: B023
    assert 'Traceback' not in caplog.text


def stall(site):
    """200 connections that send nothing, a part of a head, a head, or a part of a body."""
    starts = (b'', b'GET / HT', head(1000)[:-2], head(1000), head(190_000) + bytes(10_000))
    return [connect(site, starts[i % len(starts)]) for i in range(200)]


def test_stalled_clients_block_nobody(monkeypatch):
    monkeypatch.setattr(server_module, 'HEAD_SECONDS', 600)
    with Site(queue=2, seconds=600, max_bytes=2_000_000) as site:
        stalled = stall(site)
        try:
            until(lambda: len(site.server.server_state.connections) == len(stalled), 20)
            assert site.segment(noise(0))[0] == 200
            assert site.fetch('GET', '/')[0] == 200
            assert len(site.server.server_state.connections) >= len(stalled), 'a stalled client was dropped first'
        finally:
            for connection in stalled:
                connection.close()


def test_stalled_clients_are_dropped(monkeypatch):
    monkeypatch.setattr(server_module, 'HEAD_SECONDS', 2)
    with Site(queue=2, seconds=3, max_bytes=2_000_000) as site:
        stalled = stall(site)
        try:
            # those without a request are closed, the others get their answer
            until(lambda: not site.server.server_state.connections, 60)
            assert connect(site, b'').recv(10) == b''
        finally:
            for connection in stalled:
                connection.close()


def test_uploads_together_are_bounded():
    with Site(queue=2, max_bytes=100_000) as site:
        part = head(100_000) + bytes(90_000)
        held = [connect(site, part) for _ in range(2)]
        until(lambda: len(site.server.server_state.tasks) == 2)
        time.sleep(0.2)
        with connect(site, part) as third:
            assert b'HTTP/1.1 503' in third.recv(4096)
        for connection in held:
            connection.close()
        until(lambda: not site.server.server_state.tasks)
        assert site.segment(noise(0))[0] == 200


def test_a_client_that_does_not_read_is_dropped(monkeypatch):
    monkeypatch.setattr(server_module, 'WRITE_SECONDS', 0.5)
    with Site(max_pixels=4_000_000, max_bytes=20_000_000) as site:
        content = png(noise(0, (1200, 1600, 3)))
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(('127.0.0.1', site.port))
            connection.sendall(head(len(content), path='/v1/segment?output=overlay') + content)
            until(lambda: site.predictor.made)
            until(lambda: not site.server.server_state.connections)


def test_nothing_stays_behind():
    with Site() as site:
        for seed in range(24):
            assert site.segment(noise(seed), '?include=image&masks=polygons')[0] == 200
        gc.collect()
        end = time.monotonic() + 60  # the thread of the last answer may still hold it
        while any(made() for made in site.predictor.made) and time.monotonic() < end:
            time.sleep(0.05)
            gc.collect()
        assert len(site.predictor.made) == 24
        assert sum(made() is not None for made in site.predictor.made) == 0
        assert site.metric('volo_seg_images_in_hand') == 0


# ---- the command


SERVE = """
import sys
from serving import Thirds
import volo_seg.inference.load
predictor = Thirds()
segment = predictor._segment
def slowly(batch, **wanted):
    import time
    if batch[0].shape[0] == 24:
        print('segmenting', flush=True)
        time.sleep(1.5)
    return segment(batch, **wanted)
predictor._segment = slowly
volo_seg.inference.load.load_predictor = lambda *a, **k: predictor
from volo_seg.commands import run
sys.exit(run('serve', ['one=x.pth', '--port', '0', *sys.argv[1:]]))
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_in_hand_finish(number, tmp_path):
    here = os.path.dirname(__file__)
    process = subprocess.Popen(
        [sys.executable, '-c', SERVE, '--timeout', '5', '--label-studio', '--label-studio-url', 'http://studio.test'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, 'TMPDIR': str(tmp_path), 'PYTHONPATH': os.pathsep.join([here, *sys.path])},
    )
    address = process.stdout.readline()
    assert address.startswith('one: http://127.0.0.1:'), process.stderr.read()
    port = int(address.split()[1].rsplit(':', 1)[1])
    assert process.stdout.readline() == f'http://127.0.0.1:{port} answers Label Studio of http://studio.test\n'
    idle = socket.create_connection(('127.0.0.1', port))
    content = png(noise(0))
    with socket.create_connection(('127.0.0.1', port)) as asking:
        asking.sendall(head(len(content)) + content)
        assert process.stdout.readline() == 'segmenting\n'
        process.send_signal(number)
        assert b'HTTP/1.1 200' in asking.recv(4096)
    assert process.communicate(timeout=60) == ('', '')
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []
    idle.close()


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['x.pth', '--max-pixels', '0'], '--max-pixels 0 must be'),
        (['x.pth', '--max-upload', '0'], '--max-upload 0 must be'),
        (['x.pth', '--max-upload', 'inf'], '--max-upload inf must be'),
        (['x.pth', '--timeout', 'nan'], '--timeout nan must be'),
        (['x.pth', '--queue-limit', '-1'], '--queue-limit -1 must be'),
        (['x.pth', '--examples', '/nowhere'], "--examples '/nowhere' holds no images"),
        (['/nowhere/x.pth', '--port', '0'], '/nowhere/x.pth'),
        (['x.pth', '--image-hosts', 'a.test'], '--image-hosts a.test is for --label-studio'),
        (['x.pth', '--label-studio', '--label-studio-url', 'studio'], "--label-studio-url 'studio' is not an address"),
        (['x.pth', '--port', '70000'], 'cannot listen on 127.0.0.1 port 70000'),
        (['x.pth', '--host', '192.0.2.1', '--port', '0'], 'cannot listen on 192.0.2.1 port 0'),
    ],
)
def test_mistakes_on_the_command_line(words, sentence, capsys):
    assert run('serve', words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith('error: ')
    assert said.count('\n') == 1


def test_a_busy_port_and_a_missing_extra_are_one_sentence(monkeypatch, capsys):
    with listen('127.0.0.1', 0) as taken:
        port = taken.getsockname()[1]
        assert run('serve', ['x.pth', '--port', str(port)]) == 2
        assert f'cannot listen on 127.0.0.1 port {port} (Address already in use)' in capsys.readouterr().err
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert run('serve', ['x.pth']) == 2
    assert "needs the packages of its extra: pip install 'volo-seg[serve]'" in capsys.readouterr().err


def test_examples_are_within_the_limits(tmp_path, capsys):
    (tmp_path / 'a.png').write_bytes(png(noise(0)))
    for flags in (['--max-pixels', '9'], ['--max-upload', '0.0001']):
        assert run('serve', ['x.pth', '--port', '0', '--examples', str(tmp_path), *flags]) == 2
        assert 'a.png' in capsys.readouterr().err


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
    with pytest.raises(UserError, match='2 configs for 3 checkpoints'):
        open_models(['a', 'b', 'c'], configs=['x', 'y'])
