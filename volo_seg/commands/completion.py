"""Print a script that completes commands, flags and file names of volo-seg in a shell."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from volo_seg.commands import COMMANDS
from volo_seg.commands.flags import make_parser
from volo_seg.errors import UserError

NOTES = """\
Load the script when a shell starts:

  bash  echo 'source <(volo-seg completion bash)' >> ~/.bashrc
  zsh   volo-seg completion zsh > "${fpath[1]}/_volo-seg"
  fish  volo-seg completion fish > ~/.config/fish/completions/volo-seg.fish
"""


def build_parser() -> argparse.ArgumentParser:
    """The flags of ``volo-seg completion``."""
    parser = make_parser('completion', __doc__, notes=NOTES)
    parser.add_argument('shell', choices=('bash', 'zsh', 'fish'), help='bash, zsh or fish')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script; see ``volo-seg completion --help``."""
    args = build_parser().parse_args(argv)
    try:
        import shtab
    except ImportError as error:
        raise UserError('volo-seg completion needs shtab: pip install "volo-seg[completion]"') from error
    whole = argparse.ArgumentParser(prog='volo-seg')
    whole.add_argument('--version', action='store_true', help='print the version')
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        parser = importlib.import_module(f'volo_seg.commands.{name.replace("-", "_")}').build_parser()
        for action in parser._actions:
            if action.nargs != 0 and not action.choices:
                action.complete = shtab.FILE
        commands.add_parser(name, help=command.summary, parents=[parser], add_help=False)
    print(shtab.complete(whole, args.shell))
    return 0
