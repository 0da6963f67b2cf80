"""List the weights that have a name, print where a file is, or download it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError
from volo_seg.weights import WEIGHTS, did_you_mean

NOTES = """
A name of the list stands for the file wherever a command, a config or Predictor takes weights; a file of that name has
priority. Downloads go to torch.hub's folder, which the environment variable TORCH_HOME moves.
"""


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg weights``."""
    parser = make_parser('weights', __doc__, notes=NOTES)
    parser.add_argument(
        'action', choices=('list', 'path', 'get'), help='print the table, the path of a file, or download it first'
    )
    parser.add_argument('names', nargs='*', metavar='NAME', help='names of the list (list: those alone)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or a path for each name; see ``volo-seg weights --help``.

    Raises:
        UserError: A name is unknown, or its file is not on this machine and cannot be downloaded.
    """
    args = build_parser().parse_args(argv)
    for name in args.names:
        if name not in WEIGHTS:
            raise UserError(f'{name!r} is not the name of weights{did_you_mean(name)}; one of {", ".join(WEIGHTS)}')
    if args.action != 'list' and not args.names:
        raise UserError(f'volo-seg weights {args.action} needs a name; one of {", ".join(WEIGHTS)}')
    for name in args.names or WEIGHTS:
        print(describe(name) if args.action == 'list' else find(name, get=args.action == 'get'))
    return 0


def describe(name: str) -> str:
    """The row of ``name`` as text: what it is, where the file is, its hash, licence and page."""
    from volo_seg.checkpoints.locate import locate_row

    row = WEIGHTS[name]
    path, url = locate_row(row)
    if path.is_file():
        place = f'{path} ({path.stat().st_size / 1e6:.1f} MB{"" if url else ", ships with volo-seg"})'
    else:
        place = f'{url}, not downloaded'
    digest = row.sha256 or 'not published by the authors'
    fields = {'file': place, 'sha256': digest, 'licence': row.licence, 'page': row.page}
    return '\n'.join([f'{name}: {row.content}', *(f'  {key:<9}{value}' for key, value in fields.items())])


def find(name: str, *, get: bool) -> str:
    """The path of the file of ``name``, downloaded if ``get`` and it is not there.

    Raises:
        UserError: It is not there and is not, or cannot be, downloaded.
    """
    from volo_seg.checkpoints.locate import download, locate_row
    from volo_seg.checkpoints.read import read_weights

    path, url = locate_row(WEIGHTS[name])
    if url and not path.is_file():
        if not get:
            raise UserError(f'{name} is not on this machine: volo-seg weights get {name}, or copy {url} to {path}')
        download(url, path, read=partial(read_weights, name=url, map_location='cpu'))
    return str(path)
