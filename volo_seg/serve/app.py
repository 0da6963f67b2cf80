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
from volo_seg.imageio import ImageError, decode_image

from .access import LOCAL_HOSTS, Access
from .batching import Batcher
from .examples import Example
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
) -> Middleware:
    """The ASGI application.

    Args:
        models: Models by name; the first one is the default.
        examples: Images that the page offers.
        limits: Limits of a request.
        workers: Threads that decode images and encode answers.
        hosts: Accepted names of the server; see :class:`.access.Access`.
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
            with batcher.announce():
                image = await run_sync(
                    lambda: decode_image(data, name=name, max_pixels=limits.max_pixels), limiter=threads
                )
                job = batcher.submit(chosen, image, confidence=confidence)
            try:
                with anyio.fail_after(limits.seconds):
                    result, seconds = await batcher.result(job)
            except TimeoutError as error:
                raise Busy(f'the image had to wait for more than {limits.seconds:g} s') from error
            except UserError as error:
                raise HTTPException(422, f'image {name!r} cannot be segmented: {error}') from error
            return await run_sync(
                lambda: encode(
                    wanted, result, model=chosen.name, seconds=seconds, masks=masks, include=include, opacity=opacity
                ),
                limiter=threads,
            )

        with batcher.place():
            content = await unless_disconnected(request, work)
        return Response(content, media_type=MEDIA_TYPES[wanted])

    @app.get('/v1/models')
    async def list_models() -> dict[str, Any]:
        """The models with their classes, the default one first, and the limits of an image."""
        return {
            'models': [describe_model(model) for model in models],
            'max_bytes': limits.max_bytes,
            'max_pixels': limits.max_pixels,
        }

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

    for file in STATIC.iterdir():
        url = '/' if file.name == 'index.html' else f'/{file.name}'
        app.add_route(url, partial(send_file, file), include_in_schema=False)
    add_error_handlers(app)
    access = Access(hosts)
    return Middleware(app, access=access, metrics=metrics, drain_seconds=limits.seconds)


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


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error by ``{"detail": sentence}``."""

    def answer(status: int, sentence: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({'detail': sentence}, status, headers)

    @app.exception_handler(StarletteHTTPException)
    async def by_status(request: Request, error: StarletteHTTPException) -> JSONResponse:
        usual = HTTPStatus(error.status_code).phrase
        sentence = f'{usual}: {request.method} {request.url.path}; see /openapi.json for what there is'
        return answer(error.status_code, sentence if error.detail == usual else error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return answer(422, f'{first["loc"][0]} parameter {first["loc"][1]!r}: {first["msg"]}')

    @app.exception_handler(ImageError)
    async def bad_image(request: Request, error: ImageError) -> JSONResponse:
        # what follows the semicolon of a size tells how to raise the limit of the commands
        sentence = str(error).partition(';')[0] if error.kind == 'size' else str(error)
        return answer({'size': 413, 'format': 415}.get(error.kind, 400), sentence)

    @app.exception_handler(MemoryError)
    async def no_memory(request: Request, error: MemoryError) -> JSONResponse:
        return answer(413, 'the image needs more memory than this machine has; make it smaller')

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # for the metrics; nobody receives it

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        return answer(500, 'the request failed; the reason is in the log of the server')
