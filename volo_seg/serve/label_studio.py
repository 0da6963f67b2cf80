"""Label Studio's ML-backend API: ``/health``, ``/setup`` and ``/predict``, which answers tasks with brush masks.

Source: the endpoints of label-studio-ml-backend (label_studio_ml/api.py) and the brush code of label-studio-converter.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from xml.etree import ElementTree

import numpy as np
from anyio.to_thread import run_sync
from fastapi import FastAPI, HTTPException, Request

from volo_seg.errors import UserError
from volo_seg.image_files import ImageError
from volo_seg.inference.result import Result

from .limits import Limits, Uploads
from .models import Model

TOKEN = 'LABEL_STUDIO_API_KEY'
"""The environment variable with the token of a user of Label Studio: a legacy token, or a personal access token."""
ACCESS_SECONDS = 60.0
"""Time for which the access token of a personal access token is used; Label Studio's own ends after five minutes."""
_STORAGE = ('s3', 'gs', 'azure-blob')
Control = dict[int, str]


class ImageSource:
    """Fetches the images of tasks: from Label Studio itself, and from hosts that are allowed by name.

    Args:
        url: Address of Label Studio.
        limits: Limits of an image and of the time.
        token: The token, sent to Label Studio alone.
        hosts: Names of other hosts.

    Raises:
        UserError: ``url`` is not an HTTP address.
    """

    def __init__(self, url: str, limits: Limits, *, token: str = '', hosts: Iterable[str] = ()) -> None:
        self.url, self.limits, self.token = url.rstrip('/'), limits, token
        self.hosts = {host.lower() for host in hosts}
        self.origin = _origin(url)
        if self.origin is None or '?' in url or '#' in url:
            raise UserError(f'--label-studio-url {url!r} is not an address; give one such as http://localhost:8080')
        self._access, self._until = '', 0.0
        self._opener = urllib.request.build_opener(_Redirects(self))

    def read(self, value: str, *, task: Any = None) -> bytes:
        """The content of the image that a task names: a ``data:`` URL, a path or URL of Label Studio, or another URL.

        Raises:
            UserError: The address is not allowed, or does not answer with an image within the limits.
        """
        if value.startswith('data:'):
            return self._decoded(value)
        if value.startswith('upload/'):
            value = f'/data/{value}'
        if value.startswith('/'):
            value = self.url + value
        elif value.partition('://')[0] in _STORAGE:
            value = f'{self.url}/tasks/{int(task)}/presign/?fileuri={urllib.parse.quote(value, safe="")}'
        shown = value.partition('?')[0][:200]
        end = time.monotonic() + self.limits.seconds
        try:
            with self._opener.open(self.request(value), timeout=self.limits.seconds) as reply:
                content = b''
                while block := reply.read1(2**16):
                    content += block
                    if len(content) > self.limits.max_bytes:
                        raise self._too_large(shown)
                    if time.monotonic() > end:
                        raise UserError(f'{shown!r} did not arrive within {self.limits.seconds:g} s; try again')
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            denied = getattr(error, 'code', 0) in (401, 403)
            fix = f'set the token of a user who may see it in {TOKEN}' if denied else 'check the address of the image'
            raise UserError(f'{shown!r} cannot be fetched ({error}); {fix}') from error
        return content

    def request(self, url: str) -> urllib.request.Request:
        """A request for ``url``, with the token if it is one of Label Studio.

        Raises:
            UserError: It is of another host that is not allowed.
        """
        origin = _origin(url)
        if origin is None or (origin != self.origin and origin[1] not in self.hosts):
            raise UserError(
                f'{url.partition("?")[0][:200]!r} is neither of {self.url} (--label-studio-url) nor of a host of '
                '--image-hosts; add its host there'
            )
        request = urllib.request.Request(url)
        if self.token and origin == self.origin:
            request.add_unredirected_header('Authorization', self._authorization())
        return request

    def _authorization(self) -> str:
        """The header of a legacy token, or of an access token that a personal access token (a JWT) is exchanged for."""
        if self.token.count('.') != 2:
            return f'Token {self.token}'
        if time.monotonic() > self._until:
            headers, body = {'Content-Type': 'application/json'}, json.dumps({'refresh': self.token}).encode()
            request = urllib.request.Request(f'{self.url}/api/token/refresh', body, headers)
            with self._opener.open(request, timeout=self.limits.seconds) as reply:
                self._access = str(json.loads(reply.read(2**16))['access'])
            self._until = time.monotonic() + ACCESS_SECONDS
        return f'Bearer {self._access}'

    def _decoded(self, value: str) -> bytes:
        head, _, text = value.partition(',')
        if len(text) * 3 // 4 > self.limits.max_bytes + 2:
            raise self._too_large(head[:40])
        try:
            return base64.b64decode(text, validate=True) if head.endswith(';base64') else _not_base64()
        except (binascii.Error, ValueError) as error:
            raise UserError(f'the data URL {value[:40]!r}… is not base64 ({error}); encode the image again') from error

    def _too_large(self, shown: str) -> UserError:
        return UserError(f'{shown!r} is larger than {round(self.limits.max_bytes / 2**20, 2):g} MB (--max-upload)')


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to an address that the source may fetch, and sends it a token only if it is its own."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return None if req.data else self.source.request(newurl)  # a token is not sent on


@dataclass(frozen=True)
class Labelling:
    """What a labelling configuration says: names of the brush and the image, the key of the image, label by class."""

    from_name: str
    to_name: str
    key: str
    labels: Control

    @classmethod
    def parse(cls, text: Any, classes: Sequence[str]) -> Labelling:
        """The first ``<BrushLabels>`` of an ``<Image>`` in the XML ``text``, whose labels are matched to ``classes``.

        A label stands for the class of its value, or for those of its ``predicted_values`` (separated by commas);
        case does not matter.

        Raises:
            UserError: There is none, or none of its labels is a class.
        """
        try:
            if not isinstance(text, str) or re.search('<!(DOCTYPE|ENTITY)', text, re.IGNORECASE):
                raise ValueError('it is no text, or declares entities')
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise UserError(f'the labelling configuration cannot be read as XML ({error}); save it again') from error
        images = {image.get('name'): image for image in root.iter('Image')}
        brushes = [brush for brush in root.iter('BrushLabels') if brush.get('toName') in images]
        if not brushes:
            raise UserError('the labelling configuration has no <BrushLabels> for an <Image>; add one')
        brush, numbers = brushes[0], {name.casefold(): index for index, name in enumerate(classes)}
        found: Control = {}
        for label in brush.iter('Label'):
            value = label.get('value', '')
            for name in (label.get('predicted_values') or value).split(','):
                if name.strip().casefold() in numbers:
                    found[numbers[name.strip().casefold()]] = value
        if not found:
            labels = ', '.join(label.get('value', '') for label in brush.iter('Label'))
            raise UserError(
                f'none of the labels {labels[:200]!r} is a class of the model ({", ".join(classes)[:300]}); rename a '
                'label, or add predicted_values="CLASS" to it'
            )
        to_name = brush.get('toName', '')
        return cls(brush.get('name', ''), to_name, images[to_name].get('value', '').lstrip('$'), found)

    def image_of(self, task: Any) -> str:
        """The address of the image of a task.

        Raises:
            UserError: The task has none.
        """
        data = task.get('data') if isinstance(task, dict) else None
        value = data.get(self.key) if isinstance(data, dict) else None
        if not isinstance(value, str):
            raise UserError(f'it has no image in its data at {self.key!r}, which the labelling configuration names')
        return value

    def prediction(self, result: Result, *, version: str) -> dict[str, Any]:
        """The prediction of a task: a brush mask for each label that occurs, with the mean confidence of its pixels."""
        height, width = result.labels.shape
        regions: list[dict[str, Any]] = []
        for label in dict.fromkeys(self.labels.values()):
            mask = np.isin(result.labels, [index for index, value in self.labels.items() if value == label])
            if not mask.any():
                continue
            value = {'format': 'rle', 'rle': encode_brush(mask), 'brushlabels': [label]}
            region: dict[str, Any] = {'id': uuid.uuid4().hex[:10], 'from_name': self.from_name, 'to_name': self.to_name}
            region |= {'type': 'brushlabels', 'value': value, 'readonly': False}
            region |= {'original_width': width, 'original_height': height, 'image_rotation': 0}
            if result.confidence is not None:
                region['score'] = float(result.confidence[mask].mean())
            regions.append(region)
        prediction: dict[str, Any] = {'model_version': version, 'result': regions}
        return prediction | ({} if result.confidence is None else {'score': float(result.confidence.mean())})


def encode_brush(mask: np.ndarray) -> list[int]:
    """Label Studio's brush code of a mask (H, W): that of RGBA pixels of which all four bytes are 255 or 0.

    See :func:`volo_seg.datasets.importers.drawing.brush` for the code. Here, a block is always a repeated value.
    """
    flat = np.repeat(mask.ravel(), 4)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    runs, values = np.diff(ends, prepend=0), flat[ends - 1]
    size = np.searchsorted([8, 16, 256], runs)  # which of the widths 3, 4, 8 and 16 a count has
    blocks = np.maximum(1, -(-runs // 2**16))  # a long run is several blocks of the largest count
    last = np.cumsum(blocks) - 1
    size, values, counts = np.repeat(size, blocks), np.repeat(values, blocks), np.full(last[-1] + 1, 2**16)
    counts[last] = runs - (blocks - 1) * 2**16
    width = np.array([3, 4, 8, 16])[size]
    codes = (((4 + size) << width | counts - 1) << 8) | values * 255
    lengths = 3 + width + 8
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    bits = np.repeat(codes, lengths) >> (np.repeat(lengths, lengths) - 1 - place) & 1
    head = f'{flat.size:032b}' + f'{7:05b}' + ''.join(f'{count - 1:04b}' for count in (3, 4, 8, 16))
    whole = np.concatenate([np.array(list(head), np.uint8), bits.astype(np.uint8)])
    return np.packbits(np.append(whole, np.zeros(8 - whole.size % 8, np.uint8))).tolist()


def add_routes(
    app: FastAPI,
    source: ImageSource,
    *,
    model: Model,
    uploads: Uploads,
    in_place: Callable[[Request, Callable[[], Coroutine[Any, Any, Any]]], Awaitable[Any]],
    segment: Callable[[str, bytes], Awaitable[Result]],
) -> None:
    """Add the endpoints to ``app``.

    Args:
        app: The application.
        source: Where images may come from.
        model: The model that answers; its name is the version of predictions.
        uploads: Reads requests.
        in_place: Runs a function in a place of the queue.
        segment: Segments an image, given by a name for messages and its content.
    """

    @app.get('/health')
    async def health() -> dict[str, str]:
        """Label Studio's check of the connection."""
        return {'status': 'UP', 'model_class': model.name}

    @app.post('/setup')
    async def setup(request: Request) -> dict[str, str]:
        """Check the labelling configuration of a project (`schema`); the answer is the version of the model."""
        body = await uploads.read_json(request)
        try:
            Labelling.parse(body.get('schema'), model.predictor.classes)
        except UserError as error:
            raise HTTPException(422, _logged(f'project {body.get("project")!r}', error)) from error
        return {'model_version': model.name}

    @app.post('/predict')
    async def predict(request: Request) -> dict[str, Any]:
        """Brush masks for `tasks` by the `label_config` of their project.

        A task whose image cannot be segmented has an empty result and an `error`; if that is so for all, the answer is
        422.
        """
        body = await uploads.read_json(request)
        tasks = body.get('tasks')
        try:
            labelling = Labelling.parse(body.get('label_config'), model.predictor.classes)
            if not isinstance(tasks, list):
                raise UserError('the request has no list `tasks`; send the documented JSON of /predict')
        except UserError as error:
            raise HTTPException(422, _logged('/predict', error)) from error

        async def answer(task: Any, name: str) -> dict[str, Any]:
            number = task.get('id') if isinstance(task, dict) else None
            number = number if isinstance(number, int) else 0
            read = partial(source.read, labelling.image_of(task), task=number)
            result = await segment(f'image of {name}', await run_sync(read, abandon_on_cancel=True))
            return await run_sync(partial(labelling.prediction, result, version=model.name))

        async def work() -> list[dict[str, Any]]:
            results, failed = [], 0
            for place, task in enumerate(tasks):
                name = f'task {str(task.get("id", place))[:20] if isinstance(task, dict) else place}'
                try:
                    results.append(await answer(task, name))
                except (UserError, ImageError, HTTPException) as error:
                    failed += 1
                    results.append({'model_version': model.name, 'result': [], 'error': _logged(name, error)})
            if failed and failed == len(tasks):
                raise HTTPException(422, results[0]['error'])
            return results

        return {'results': await in_place(request, work)}


def _logged(where: str, error: Exception) -> str:
    """The sentence of an error, which is printed too, because Label Studio does not show it."""
    reason = error.detail if isinstance(error, HTTPException) else str(error)
    sentence = ' '.join(f'{where}: {reason}'.split())
    print(f'Label Studio: {sentence}', file=sys.stderr, flush=True)
    return sentence


def _origin(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an HTTP address without a user; None for anything else."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {'http': 80, 'https': 443}[parts.scheme]
    except (ValueError, KeyError):
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname and '@' not in parts.netloc else None


def _not_base64() -> bytes:
    raise ValueError('its head does not end in ;base64')
