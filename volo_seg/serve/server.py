"""uvicorn with a socket of ours, and connections that a stalled client cannot keep."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from volo_seg.errors import UserError

from .middleware import Middleware

HEAD_SECONDS = 10.0
"""Time for the head of the first request of a connection."""
KEEP_ALIVE_SECONDS = 75
"""Time for the head of each further request; proxies keep connections for a minute."""
WRITE_SECONDS = 60.0
"""Time for reading what has been sent, before more is sent."""

REFUSED_SECONDS = 2.0
"""Time in which what follows an invalid request is discarded."""


class Connection(H11Protocol):
    """uvicorn's HTTP protocol with two more time limits, and JSON as the answer to what is not HTTP."""

    head_timer: asyncio.TimerHandle | None = None
    write_timer: asyncio.TimerHandle | None = None
    refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.expect_head(HEAD_SECONDS)

    def on_response_complete(self) -> None:
        self.expect_head(KEEP_ALIVE_SECONDS)
        super().on_response_complete()

    def expect_head(self, seconds: float) -> None:
        """Close the connection if no other request has begun within ``seconds``."""
        before = self.cycle
        if self.head_timer is not None:
            self.head_timer.cancel()
        close = self.transport.close
        self.head_timer = self.loop.call_later(seconds, lambda: close() if self.cycle is before else None)

    def pause_writing(self) -> None:
        self.write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        if self.write_timer is not None:
            self.write_timer.cancel()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if not self.refused:  # afterwards it is discarded: closing with unread data would reset the connection
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        self.refused = True
        headers = [('content-type', 'application/json'), ('connection', 'close')]
        body = json.dumps({'detail': 'the request is not valid HTTP/1.1'}).encode()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b'')
        if self.cycle is not None:  # its application gets no more of the body, and what it sends is dropped
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()
        self.loop.call_later(REFUSED_SECONDS, self.transport.close)


def make_server(app: Middleware, *, seconds: float) -> uvicorn.Server:
    """A server for ``app``; told to stop, it gives the requests in hand ``seconds`` to finish."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws='none',
        lifespan='on',
        log_level='warning',
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(seconds),
    )
    return uvicorn.Server(config)


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on ``host`` and ``port``; port 0 takes a free one.

    Raises:
        UserError: The address is not of this machine, or in use.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1024)
        except (OSError, OverflowError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise UserError(f'cannot listen on {host} port {port} ({reason}); choose another with --port') from error
        yield listener
