"""The HTTP API and the page as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from volo_seg import __version__
from volo_seg.errors import UserError
from volo_seg.image_files import ImageError
from volo_seg.imageio import decode_image
from volo_seg.inference.result import Result

from .access import LOCAL_HOSTS, Access
from .batching import Batcher
from .examples import Example
from .label_studio import ImageSource, add_routes
from .limits import Busy, Limits, Uploads
from .metrics import Metrics
from .middleware import Middleware
from .models import Model, describe_model
from .responses import MEDIA_TYPES, Answer, Include, Masks, Output, choose_output, encode

T = TypeVar('T')
STATIC = Path(__file__).parent / 'static'
FILE = {'schema': {'type': 'string', 'format': 'binary'}}
FORM = {'schema': {'type': 'object', 'properties': {'image': FILE['schema']}, 'required': ['image']}}
BODY = {'requestBody': {'required': True, 'content': {'image/*': FILE, 'multipart/form-data': FORM}}}
REASONS = {
    400: 'The image cannot be read',
    404: 'No such model',
    406: 'No such output',
    408: 'The body did not arrive in time',
    413: 'Too many bytes or pixels',
    415: 'The body is neither a form nor an image of a known format',
    422: 'A parameter is wrong, or the model cannot segment the image',
    503: 'Too many requests are in hand; see Retry-After',
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {'model': Answer, 'content': {kind: FILE for kind in MEDIA_TYPES.values() if kind != 'application/json'}},
    **{status: {'description': f'{reason}: `{{"detail": sentence}}`'} for status, reason in REASONS.items()},
}


def build_app(
    models: Sequence[Model],
    *,
    examples: Sequence[Example] = (),
    limits: Limits | None = None,
    workers: int = 2,
    hosts: Iterable[str] | None = LOCAL_HOSTS,
    label_studio: ImageSource | None = None,
) -> Middleware:
    """The ASGI application.

    Args:
        models: Models by name; the first one is the default.
        examples: Images that the page offers.
        limits: Limits of a request.
        workers: Threads that decode images and encode answers.
        hosts: Accepted names of the server; see :class:`.access.Access`.
        label_studio: Where images of Label Studio's tasks come from; None leaves its ML-backend API out.
    """
    limits = limits or Limits()
    metrics = Metrics()
    uploads, batcher = Uploads(limits), Batcher(queue=limits.queue, metrics=metrics)
    named = {model.name: model for model in models}
    threads = anyio.CapacityLimiter(workers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_sync(batcher.close)

    app = FastAPI(title='volo-seg', version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)

    async def run_model(model: Model, name: str, data: bytes, *, confidence: bool) -> tuple[Result, float]:
        """Decode and segment an image; the result, and the seconds of the network run."""
        decode = partial(decode_image, data, name=name, reading=model.predictor.reading, max_pixels=limits.max_pixels)
        with batcher.announce():
            job = batcher.submit(model, await run_sync(decode, limiter=threads), confidence=confidence)
        try:
            with anyio.fail_after(limits.seconds):
                return await batcher.result(job)
        except TimeoutError as error:
            raise Busy(f'the image had to wait for more than {limits.seconds:g} s') from error
        except UserError as error:
            raise HTTPException(422, f'image {name!r} cannot be segmented: {error}') from error

    async def in_place(request: Request, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of ``work``, which holds a place of the queue until the client closes the connection."""
        with batcher.place():
            return await unless_disconnected(request, work)

    @app.post('/v1/segment', response_class=Response, responses=ANSWERS, openapi_extra=BODY)
    async def segment(
        request: Request,
        model: str | None = None,
        output: Output | None = None,
        masks: Masks = 'none',
        include: Annotated[list[Include], Query()] = [],  # noqa: B006
        opacity: Annotated[float, Query(ge=0, le=1)] = 0.5,
    ) -> Response:
        """Segment an image: JPEG, PNG, WebP, TIFF or BMP.

        The answer is the media type of the `Accept` header, or what `output` names. JSON has the share of each class,
        and on request a mask of each class (`masks`) and further files in base64 (`include`).
        """
        chosen = named.get(models[0].name if model is None else model)
        if chosen is None:
            raise HTTPException(404, f'model {model!r} is not served; choose from {", ".join(named)}')
        wanted = choose_output(request.headers.get('accept'), output)
        confidence = 'confidence' in include or (wanted == 'npz' and chosen.confidence)
        if confidence and not chosen.confidence:
            raise HTTPException(422, f'model {chosen.name!r} gives no confidence; leave it out of include')
        batcher.check()
        name, data = await uploads.read(request)

        async def work() -> bytes:
            result, seconds = await run_model(chosen, name, data, confidence=confidence)
            options: dict[str, Any] = {'masks': masks, 'include': include, 'opacity': opacity}
            content = partial(encode, wanted, result, model=chosen.name, seconds=seconds, **options)
            return await run_sync(content, limiter=threads)

        return Response(await in_place(request, work), media_type=MEDIA_TYPES[wanted])

    @app.get('/v1/models')
    async def list_models() -> dict[str, Any]:
        """The models with their classes, the default one first, and the limits of an image."""
        described = [describe_model(model) for model in models]
        return {'models': described, 'max_bytes': limits.max_bytes, 'max_pixels': limits.max_pixels}

    @app.get('/v1/examples')
    async def list_examples() -> list[str]:
        """The file names of the examples."""
        return [example.path.name for example in examples]

    @app.get('/v1/examples/{index}', response_class=Response, responses={200: {'content': {'image/*': FILE}}})
    async def get_example(index: int, thumbnail: bool = False) -> Response:
        """An example's file, or a small JPEG of it."""
        if not 0 <= index < len(examples):
            raise HTTPException(404, f'there is no example {index}; choose from 0 to {len(examples) - 1}')
        if thumbnail:
            return Response(examples[index].thumbnail, media_type='image/jpeg')
        return Response(await run_sync(examples[index].path.read_bytes), media_type='application/octet-stream')

    @app.get('/healthz')
    async def health() -> dict[str, str]:
        """200 while the thread of the networks lives."""
        if not batcher.thread.is_alive():
            raise HTTPException(503, 'the thread that runs the networks has ended; restart the server')
        return {'status': 'ok'}

    @app.get('/metrics', response_class=Response)
    async def show_metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    if label_studio is not None:

        async def segment_task(name: str, data: bytes) -> Result:
            return (await run_model(models[0], name, data, confidence=models[0].confidence))[0]

        add_routes(app, label_studio, model=models[0], uploads=uploads, in_place=in_place, segment=segment_task)

    for file in STATIC.iterdir():
        url = '/' if file.name == 'index.html' else f'/{file.name}'
        app.add_route(url, partial(send_file, file), include_in_schema=False)
    for kind in (StarletteHTTPException, RequestValidationError, ImageError, MemoryError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, answer_error)
    return Middleware(app, access=Access(hosts), metrics=metrics, drain_seconds=limits.seconds)


async def send_file(path: Path, request: Request) -> FileResponse:
    """A file of the page."""
    return FileResponse(path)


async def unless_disconnected(request: Request, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The result of ``work``, which is cancelled when the client closes the connection.

    Raises:
        ClientDisconnect: The client has closed it.
    """

    async def disconnect() -> None:
        while (await request.receive())['type'] != 'http.disconnect':
            pass

    tasks = asyncio.ensure_future(work()), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """The answer to an error: ``{"detail": sentence}``."""
    status, sentence, headers = 500, 'the request failed; the reason is in the log of the server', None
    if isinstance(error, StarletteHTTPException):
        status, sentence, headers = error.status_code, error.detail, error.headers
        if sentence == HTTPStatus(status).phrase:
            sentence = f'{sentence}: {request.method} {request.url.path}; see /openapi.json for what there is'
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        status, sentence = 422, f'{first["loc"][0]} parameter {first["loc"][1]!r}: {first["msg"]}'
    elif isinstance(error, ImageError):
        status, sentence = {'size': 413, 'format': 415}.get(error.kind, 400), str(error)
        if error.kind == 'size':  # the rest tells how to raise the limit of the commands
            sentence = sentence.partition(';')[0]
    elif isinstance(error, MemoryError):
        status, sentence = 413, 'the image needs more memory than this machine has; make it smaller'
    elif isinstance(error, ClientDisconnect):
        status = 499  # for the metrics; nobody receives it
    return JSONResponse({'detail': sentence}, status, headers)
