"""Serve an HTTP API that segments images, and a page that uses it, for one model or several."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError
from volo_seg.weights import DEFAULT

PACKAGES = ('fastapi', 'uvicorn', 'python_multipart', 'prometheus_client')


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg serve``."""
    parser = make_parser('serve', __doc__)
    add = parser.add_argument
    what = '.pth, .safetensors, an exported file, a published folder, or shipped weights; NAME=MODEL chooses its name; '
    what += f'the first is the default (without any: {DEFAULT}, which ships with the package)'
    add('models', nargs='*', default=[DEFAULT], metavar='MODEL', help=what)
    add('--config', nargs='+', default=[], help='config of the models: one for all, or one each')
    add('--device', default='auto', help='auto, cpu, cuda, cuda:1 (default auto)')
    add('--host', default='127.0.0.1', help='address to listen on (default: this machine alone)')
    add('--port', type=int, default=7860, help='port, 0 for any that is free (default 7860)')
    what = 'accepted in the Host header besides the loopback names, as behind a proxy; on other addresses default: any'
    add('--allow-hosts', nargs='+', default=[], metavar='NAME', help=what)
    add('--examples', type=Path, metavar='FOLDER', help='folder whose images the page offers')
    what = 'images of equal size that go through a network together at most (default 8 on a GPU, 1 on a CPU)'
    add('--batch-size', type=int, metavar='N', help=what)
    add('--queue-limit', type=int, default=16, metavar='N', help='requests in hand; more get a 503 (default 16)')
    add('--workers-limit', type=int, default=2, metavar='N', help='threads that decode and encode (default 2)')
    add('--max-pixels', type=int, default=2**24, metavar='N', help='largest image in pixels (default 4096 x 4096)')
    add('--max-upload', type=float, default=20.0, metavar='MB', help='largest image file in MB (default 20)')
    what = 'seconds for an upload, for the wait for a network, and for the end after SIGTERM (default 30)'
    add('--timeout', type=float, default=30.0, metavar='S', help=what)
    studio = parser.add_argument_group('Label Studio')
    what = 'answer the ML-backend API of Label Studio too, with the default model (/health, /setup, /predict)'
    studio.add_argument('--label-studio', action='store_true', help=what)
    what = 'address of Label Studio, from which the images of tasks are fetched with the token in the environment '
    what += 'variable LABEL_STUDIO_API_KEY (default: the variable LABEL_STUDIO_URL, or http://localhost:8080)'
    url = os.environ.get('LABEL_STUDIO_URL') or 'http://localhost:8080'
    studio.add_argument('--label-studio-url', default=url, metavar='URL', help=what)
    what = 'other hosts from which images may be fetched, such as that of a cloud storage'
    studio.add_argument('--image-hosts', nargs='+', default=[], metavar='NAME', help=what)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Open the models and serve them until SIGINT or SIGTERM; see ``volo-seg serve --help``."""
    args = build_parser().parse_args(argv)
    for name in ('queue_limit', 'workers_limit', 'max_pixels', 'max_upload', 'timeout'):
        value = getattr(args, name)
        if not math.isfinite(value) or value <= 0:
            raise UserError(f'--{name.replace("_", "-")} {value:g} must be a number above 0')
    if not all(map(importlib.util.find_spec, PACKAGES)):
        raise UserError("volo-seg serve needs the packages of its extra: pip install 'volo-seg[serve]'")
    from volo_seg.serve.access import LOCAL_HOSTS, LOOPBACK
    from volo_seg.serve.app import build_app
    from volo_seg.serve.examples import find_examples, open_examples
    from volo_seg.serve.label_studio import TOKEN, ImageSource
    from volo_seg.serve.limits import Limits
    from volo_seg.serve.models import open_models
    from volo_seg.serve.server import listen, make_server

    limits = Limits(math.ceil(args.max_upload * 2**20), args.max_pixels, args.timeout, args.queue_limit)
    source = None
    if args.image_hosts and not args.label_studio:
        raise UserError(f'--image-hosts {" ".join(args.image_hosts)} is for --label-studio; add it')
    if args.label_studio:
        token = os.environ.get(TOKEN, '')
        source = ImageSource(args.label_studio_url, limits, token=token, hosts=args.image_hosts)
    paths = find_examples(args.examples, limits) if args.examples else []
    local = args.host in LOOPBACK
    hosts = LOCAL_HOSTS.union(args.allow_hosts) if local or args.allow_hosts else None
    with listen(args.host, args.port) as listener:
        models = open_models(args.models, configs=args.config, device=args.device, batch_size=args.batch_size)
        examples = open_examples(paths, limits, reading=models[0].predictor.reading)
        workers = args.workers_limit
        app = build_app(models, examples=examples, limits=limits, workers=workers, hosts=hosts, label_studio=source)
        server = make_server(app, seconds=args.timeout)
        # uvicorn raises the signal again after its end: with its own handler in place nothing more happens
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, server.handle_exit)
        address = f'http://{f"[{args.host}]" if ":" in args.host else args.host}:{listener.getsockname()[1]}'
        print(f'{", ".join(model.name for model in models)}: {address} (page), {address}/v1/segment (API)', flush=True)
        if source:
            print(f'{address} answers Label Studio of {source.url}', flush=True)
        if not local:
            print('note: everyone who reaches this address can use the server; there is no password', flush=True)
        server.run(sockets=[listener])
    return 0
