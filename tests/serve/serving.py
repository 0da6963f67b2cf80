"""A server in a thread, a predictor whose answers are known, and how a client talks to them."""

import contextlib
import http.client
import json
import threading
import time
import weakref

import cv2
import numpy as np

from volo_seg.inference.base import BasePredictor, Prediction
from volo_seg.serve.app import build_app
from volo_seg.serve.label_studio import ImageSource
from volo_seg.serve.limits import Limits
from volo_seg.serve.models import Model
from volo_seg.serve.server import listen, make_server

PALETTE = [[10, 20, 30], [200, 100, 0], [0, 0, 255]]
NAMES = ('road', '<b>sky</b>', 'car')
PNG = {'Content-Type': 'image/png'}


class Thirds(BasePredictor):
    """Labels by the blue value. Notes the size of each batch and how many run at once; waits while it is told to."""

    def __init__(self, *, batch_size=1):
        super().__init__(NAMES, PALETTE, batch_size=batch_size)
        self.running = self.most = 0
        self.batches, self.made, self.go = [], [], threading.Event()
        self.go.set()

    def _segment(self, batch, *, confidence, probabilities):
        self.running += 1
        self.most = max(self.most, self.running)
        self.batches.append(len(batch))
        assert self.go.wait(60)
        sure = np.full(batch[0].shape[:2], 0.5, np.float32) if confidence else None
        scores = [Prediction(image[..., 0] % 3, sure) for image in batch]
        self.made += [weakref.ref(score.labels) for score in scores]
        self.running -= 1
        return scores


def png(image):
    return cv2.imencode('.png', image)[1].tobytes()


def noise(seed, shape=(24, 40, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def until(condition, seconds=60):
    """Wait for ``condition``; fail if it does not come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not come true'
        time.sleep(0.005)


class Site:
    """The application with one model, served from a thread."""

    def __init__(self, *, batch_size=1, examples=(), hosts=('127.0.0.1', 'localhost', '[::1]'), studio=None, **limits):
        self.predictor = Thirds(batch_size=batch_size)
        self.limits = Limits(**{'max_pixels': 100_000, 'max_bytes': 200_000, **limits})
        models = [Model('one', self.predictor)]
        source = studio and ImageSource(studio, self.limits, token='secret', hosts=['storage.test'])
        self.app = build_app(models, examples=examples, limits=self.limits, hosts=hosts, label_studio=source)
        self.stack = contextlib.ExitStack()
        listener = self.stack.enter_context(listen('127.0.0.1', 0))
        self.port = listener.getsockname()[1]
        self.server = make_server(self.app, seconds=5)
        self.thread = threading.Thread(target=self.server.run, kwargs={'sockets': [listener]}, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.predictor.go.set()
        self.server.should_exit = True
        self.thread.join(20)
        self.stack.close()
        assert not self.thread.is_alive()

    def fetch(self, method, path, body=None, headers=None):
        """(status, body); the path is sent as it stands, and the headers of the answer are kept."""
        with contextlib.closing(http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)) as connection:
            connection.request(method, path, body=body, headers=headers or {})
            reply = connection.getresponse()
            data = reply.read()
        self.headers = {name.lower(): value for name, value in reply.getheaders()}
        return reply.status, data

    def segment(self, image, query='', headers=None):
        """(status, body) of an image array, or of a body."""
        body = png(image) if isinstance(image, np.ndarray) else image
        return self.fetch('POST', '/v1/segment' + query, body, {**PNG, **(headers or {})})

    def detail(self, *request):
        """(status, sentence) of a request that is refused; its JSON has nothing else."""
        status, body = self.fetch(*request)
        answer = json.loads(body)
        assert list(answer) == ['detail']
        assert '\n' not in answer['detail']
        return status, answer['detail']

    def metric(self, name):
        """The value of the first sample called ``name``."""
        text = self.fetch('GET', '/metrics')[1].decode()
        return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(name)))
