"""Serve the page: a socket, Gradio behind the gate, and a private folder that is gone afterwards."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volo_seg.app.gate import LOCAL_HOSTS, Gate
from volo_seg.app.models import Model
from volo_seg.errors import UserError

MAX_PIXELS = 2**24
"""Pixels of an image that is sent, by default: 4096 x 4096."""
MAX_BYTES = 20 * 2**20
LOOPBACK = ('127.0.0.1', 'localhost', '::1')
QUIET = {
    'GRADIO_ANALYTICS_ENABLED': 'False',
    'GRADIO_SHARE': 'False',
    'GRADIO_MCP_SERVER': 'False',
    'GRADIO_SSR_MODE': 'False',
    'GRADIO_RUN_HISTORY': 'False',
    'HF_HUB_DISABLE_TELEMETRY': '1',
}
"""Environment in which Gradio reports to nobody and starts nothing beside itself."""


def check_gradio() -> None:
    """Say what to install, without loading it.

    Raises:
        UserError: Gradio is missing, or of another time.
    """
    fix = "pip install 'volo-seg[app]'"
    try:
        version = importlib.metadata.version('gradio')
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f'the page needs the package gradio: {fix}') from error
    if version.split('.')[0] != '6':
        raise UserError(f'the page needs gradio 6, and {version} is installed: {fix}')


def serve(
    models: Sequence[Model],
    *,
    host: str = '127.0.0.1',
    port: int = 7860,
    examples: Sequence[Path] = (),
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        models: What segments each image, side by side.
        host: Address to listen on; by default this machine alone reaches it.
        port: 0 takes a free one.
        examples: Images that the page offers.
        max_pixels: Largest image that is taken.
        max_bytes: Largest file that is taken.
        announce: Called with the address of the page, once it listens.

    Raises:
        UserError: Gradio is missing, the address cannot be listened on, or an example is no image.
    """
    check_gradio()
    import uvicorn

    with private_folder() as folder, listen(host, port) as listener:
        os.environ.update(QUIET, GRADIO_TEMP_DIR=str(folder))
        local = host in LOOPBACK
        app = build_app(models, examples=examples, max_pixels=max_pixels, max_bytes=max_bytes, local=local)
        config = uvicorn.Config(
            app, log_level='warning', access_log=False, server_header=False, timeout_graceful_shutdown=2
        )
        shown = f'[{host}]' if ':' in host else host
        announce(f'http://{shown}:{listener.getsockname()[1]}')
        uvicorn.Server(config).run(sockets=[listener])


def build_app(
    models: Sequence[Model],
    *,
    examples: Sequence[Path] = (),
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    local: bool = True,
) -> Gate:
    """The page as an ASGI application; ``local`` answers only to the names of this machine."""
    check_gradio()
    os.environ.update(QUIET)
    import fastapi
    import gradio

    from volo_seg.app.page import build_page, read_asset

    page = build_page(models, examples=examples, max_pixels=max_pixels, max_bytes=max_bytes)
    fonts: Any = ['system-ui', 'sans-serif']
    mono: Any = ['ui-monospace', 'monospace']
    app = gradio.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path='/',
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=gradio.themes.Base(font=fonts, font_mono=mono, primary_hue='teal', neutral_hue='slate'),
        # as it stands: Gradio rewrites what it gets as css, and drops @container
        head=f'<style>{read_asset("viewer.css")}</style>',
    )
    return Gate(app, max_body=max_bytes * 4 // 3 + 2**16, hosts=LOCAL_HOSTS if local else None)


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to ``host`` and ``port``.

    Raises:
        UserError: The address is not of this machine, or in use.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, 'strerror', None) or error
            raise UserError(f'cannot listen on {host} port {port} ({reason}); choose another with --port') from error
        yield listener


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder of our own for whatever Gradio writes, deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix='volo-seg-app-', ignore_cleanup_errors=True) as folder:
        yield Path(folder)
