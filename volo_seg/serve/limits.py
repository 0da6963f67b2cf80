"""Limits of the server, and reading one image from a request within them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

FORM_BYTES = 2**16
"""Bytes of a multipart body that are not the image."""
RAW_TYPES = ('', 'application/octet-stream')


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        max_bytes: Size of an image file in bytes.
        max_pixels: Size of an image in pixels, checked before it is decoded.
        seconds: Time for the upload, and again for the wait for a network.
        queue: Requests in hand (decoding, waiting, segmenting, encoding) at most. Uploads that are not complete hold
            ``queue * max_bytes`` bytes together at most.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 2**24
    seconds: float = 30.0
    queue: int = 16


class Busy(HTTPException):
    """503 with ``Retry-After``, in seconds."""

    def __init__(self, reason: str) -> None:
        super().__init__(503, f'{reason}; try again in a moment', {'Retry-After': '1'})


class MemoryFormParser(MultiPartParser):
    """Keeps files in memory: their size is limited before they get here."""

    spool_max_size = 0  # never rolled over to a file on disk


class Uploads:
    """Reads request bodies and counts the bytes that all of them hold."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.bytes = 0

    async def read(self, request: Request) -> tuple[str, bytes]:
        """(file name, content) of the image in ``request``: a raw body, or the file field ``image`` of a form.

        Raises:
            HTTPException: 400 malformed form, 408 too slow, 413 too large, 415 another content type, 422 no image in
                the form, 503 too many bytes in all uploads together.
            ClientDisconnect: The client has closed the connection.
        """
        kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
        is_form = kind == 'multipart/form-data'
        if not (is_form or kind in RAW_TYPES or kind.startswith('image/')) or 'content-encoding' in request.headers:
            fix = 'send an image/*, or a multipart/form-data with a file `image`'
            raise HTTPException(415, f'the body is {kind or "encoded"}; {fix}')
        limit = self.limits.max_bytes + FORM_BYTES * is_form
        name, data = await self._arrived(request, limit, partial(_read_form, request) if is_form else _read_raw)
        self._check(len(data), self.limits.max_bytes)
        return name, data

    async def read_json(self, request: Request) -> dict[str, Any]:
        """The JSON object in ``request``, of at most twice the bytes of an image.

        Raises:
            HTTPException: As :meth:`read`, and 422 for what is not a JSON object.
            ClientDisconnect: The client has closed the connection.
        """
        _, data = await self._arrived(request, 2 * self.limits.max_bytes, _read_raw)
        try:
            body = await run_sync(json.loads, data)
        except (ValueError, RecursionError) as error:
            raise HTTPException(422, f'the body is not JSON ({error}); send a JSON object') from error
        if not isinstance(body, dict):
            raise HTTPException(422, 'the body is JSON, but not an object; send a JSON object')
        return body

    async def _arrived(self, request: Request, limit: int, read: Reader) -> tuple[str, bytes]:
        try:
            with anyio.fail_after(self.limits.seconds):
                async with aclosing(self._stream(request, limit)) as stream:
                    return await read(stream)
        except TimeoutError as error:
            raise HTTPException(408, f'the body did not arrive within {self.limits.seconds:g} s') from error

    async def _stream(self, request: Request, limit: int) -> AsyncGenerator[bytes, None]:
        length, held = request.headers.get('content-length', ''), 0
        self._check(int(length) if length.isdecimal() else 0, limit)
        try:
            async for chunk in request.stream():
                self.bytes += len(chunk)
                held += len(chunk)
                self._check(held, limit)
                if self.bytes > self.limits.queue * self.limits.max_bytes:
                    raise Busy('too many uploads are in progress')
                yield chunk
        finally:
            self.bytes -= held

    def _check(self, size: int, limit: int) -> None:
        if size > limit:
            what, most = ('image', self.limits.max_bytes) if limit < 2 * self.limits.max_bytes else ('body', limit)
            raise HTTPException(413, f'the {what} is larger than {round(most / 2**20, 2):g} MB')


Reader = Callable[[AsyncGenerator[bytes, None]], Awaitable[tuple[str, bytes]]]


async def _read_raw(stream: AsyncGenerator[bytes, None]) -> tuple[str, bytes]:
    return 'image', b''.join([chunk async for chunk in stream])


async def _read_form(request: Request, stream: AsyncGenerator[bytes, None]) -> tuple[str, bytes]:
    try:
        form = await MemoryFormParser(request.headers, stream, max_files=1, max_fields=0).parse()
    except MultiPartException as error:
        raise HTTPException(400, f'the multipart body cannot be read: {error.message}') from error
    file = form.get('image')
    if not isinstance(file, UploadFile):
        raise HTTPException(422, 'the form has no file `image`; add it')
    return file_name(file.filename), file.file.read()


def file_name(text: str | None) -> str:
    """The file name that a client sent, for messages: one line, without folders, at most 80 characters."""
    words = PurePath((text or '').replace('\\', '/')).name
    return ''.join(c for c in words if c.isprintable())[:80] or 'image'
