"""What stands before Gradio: only what the page itself needs gets through, of bounded size, from where it belongs.

Gradio answers many more paths than one page asks for, among them such that serve files, fetch addresses, or edit the
page. None of these is reachable here, whatever its own checks say.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

PATHS = {
    '/': ('GET', 'HEAD'),
    '/config': ('GET',),
    '/favicon.ico': ('GET',),
    '/manifest.json': ('GET',),
    '/robots.txt': ('GET',),
    '/theme.css': ('GET',),
    '/gradio_api/app_id': ('GET',),
    '/gradio_api/queue/data': ('GET',),
    '/gradio_api/startup-events': ('GET',),
    '/gradio_api/queue/join': ('POST',),
}
FOLDERS = ('/assets/', '/static/', '/gradio_api/heartbeat/')
LOCAL_HOSTS = ('localhost', '127.0.0.1', '[::1]')
HEADERS = (
    (
        b'content-security-policy',
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
        b"frame-ancestors 'self'",
    ),
    (b'referrer-policy', b'no-referrer'),
    (b'x-content-type-options', b'nosniff'),
)


class TooLarge(Exception):
    """A body went over the limit while it was read."""


class Gate:
    """ASGI middleware: paths, methods, hosts, sizes, and headers that keep the browser from asking elsewhere.

    Args:
        app: What is behind it.
        max_body: Largest body of a request in bytes.
        hosts: Names under which the page may be asked for, or None for any. Where a page is served to this machine
            alone, they keep other sites from reaching it under a name of theirs.
    """

    def __init__(self, app: App, *, max_body: int, hosts: tuple[str, ...] | None) -> None:
        self.app, self.max_body, self.hosts = app, max_body, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope['type'] == 'lifespan':
            await self.app(scope, receive, send)
            return
        if scope['type'] != 'http':
            await send({'type': 'websocket.close', 'code': 1008})
            return
        refused = self.refuse(scope['method'], scope['path'], dict(scope['headers']))
        if refused:
            if refused[0] != 413:
                await self._drain(receive)
            await _reply(send, *refused)
            return
        await self._pass(scope, receive, send)

    def refuse(self, method: str, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """(status, sentence) for a request that does not get through, else None."""
        if self.hosts is not None and _host(headers.get(b'host', b'')) not in self.hosts:
            return 421, 'This page is served under another name.'
        methods = PATHS.get(path) or (('GET',) if _in_folder(path) else ())
        if not methods:
            return 404, 'Not found.'
        if method not in methods:
            return 405, 'Not allowed.'
        if method == 'POST' and headers.get(b'sec-fetch-site', b'same-origin') not in (b'same-origin', b'none'):
            return 403, 'Another site may not use this page.'
        length = headers.get(b'content-length', b'0')
        if not length.isdigit() or int(length) > self.max_body:
            return 413, 'The image is too large.'
        return None

    async def _drain(self, receive: Receive) -> None:
        """Read a body to its end: who is still sending would lose the reply."""
        seen, more = 0, True
        while more and seen <= self.max_body:
            message = await receive()
            seen += len(message.get('body', b''))
            more = message.get('more_body', False)

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        seen, started = 0, False

        async def count() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get('body', b''))
            if seen > self.max_body:
                raise TooLarge
            return message

        async def reply(message: Message) -> None:
            nonlocal started
            if message['type'] == 'http.response.start':
                started = True
                message = {**message, 'headers': [*message.get('headers', []), *HEADERS]}
            await send(message)

        try:
            await self.app(scope, count, reply)
        except TooLarge:
            if not started:
                await _reply(send, 413, 'The image is too large.')


def _in_folder(path: str) -> bool:
    return path.startswith(FOLDERS) and '..' not in path and '\\' not in path


def _host(header: bytes) -> str:
    """``header`` without its port."""
    text = header.decode('latin-1').lower()
    return text[: text.index(']') + 1] if text.startswith('[') and ']' in text else text.split(':')[0]


async def _reply(send: Send, status: int, sentence: str) -> None:
    headers = [(b'content-type', b'application/json'), (b'connection', b'close'), *HEADERS]
    await send({'type': 'http.response.start', 'status': status, 'headers': headers})
    await send({'type': 'http.response.body', 'body': json.dumps({'detail': sentence}).encode()})
