"""ASGI middleware around the application: access, response headers, answers before the body has arrived, metrics."""

from __future__ import annotations

import time

import anyio
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import Access
from .metrics import Metrics

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b'cache-control', b'no-store'),
    (b'content-security-policy', POLICY.encode()),
    (b'cross-origin-opener-policy', b'same-origin'),
    (b'cross-origin-resource-policy', b'same-origin'),
    (b'referrer-policy', b'no-referrer'),
    (b'x-content-type-options', b'nosniff'),
    (b'x-frame-options', b'DENY'),
)


class Middleware:
    """Checks who asks, adds headers, counts, and discards the rest of a body that is answered early.

    A server that closes a connection with unread data resets it, and the client loses the answer. An answer that is
    sent before the whole body has arrived therefore waits, complete but for its end, until the body has been discarded.

    Args:
        app: The application.
        access: Accepted hosts and origins.
        metrics: Counts requests.
        drain_seconds: Time for discarding the rest of a body.
    """

    def __init__(self, app: ASGIApp, *, access: Access, metrics: Metrics, drain_seconds: float) -> None:
        self.app, self.access, self.metrics, self.drain_seconds = app, access, metrics, drain_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        headers = dict(scope['headers'])
        unread = b'transfer-encoding' in headers or headers.get(b'content-length', b'0') != b'0'
        # who waits for `100 Continue` sends nothing before it is asked for
        asked = headers.get(b'expect', b'').lower() != b'100-continue'

        async def counted_receive() -> Message:
            nonlocal unread, asked
            asked = True
            message = await receive()
            unread = message['type'] == 'http.request' and message.get('more_body', False)
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message['type'] == 'http.response.start':
                status = message['status']
                close = [(b'connection', b'close')] if unread else []
                await send({**message, 'headers': [*message.get('headers', []), *HEADERS, *close]})
            elif message.get('more_body', False) or not (unread and asked):
                await send(message)
            else:
                await send({**message, 'more_body': True})
                with anyio.move_on_after(self.drain_seconds):
                    while unread:
                        await counted_receive()
                await send({'type': 'http.response.body', 'body': b''})

        try:
            refused = self.access.refuse(scope['method'], scope['headers'])
            if refused:
                status_code, sentence = refused
                await JSONResponse({'detail': sentence}, status_code)(scope, counted_receive, counted_send)
            else:
                await self.app(scope, counted_receive, counted_send)
        finally:
            path = getattr(scope.get('route'), 'path', 'other')
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
