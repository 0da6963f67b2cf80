"""The commands: one module each, with ``build_parser()`` and ``main(argv)``. ``volo-seg`` and tools/ run them."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import re
import sys
import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from volo_seg.commands.signals import Signals
from volo_seg.errors import PeerLost, UserError, message_of, print_message
from volo_seg.io import check_utf8


class Command(NamedTuple):
    """A command of ``volo-seg``: what it does, in one line, and the arguments of an example."""

    summary: str
    example: str


COMMANDS = {
    'doctor': Command('print versions, device and conflicts, for a bug report', ''),
    'demo': Command('generate data, train, evaluate, predict and report, in minutes', ''),
    'toyscapes': Command('generate the Toyscapes data set', 'data/toyscapes --train 240 --val 40'),
    'cityscapes': Command('write the labelTrainIds images of Cityscapes', 'data/cityscapes --nproc 8'),
    'import': Command('make a data set from COCO, YOLO, CVAT, labelme and others', 'annotated/ data/mine'),
    'check': Command('check the data of a config', 'config.py --fast'),
    'browse': Command('draw augmented samples with their labels', 'config.py samples --count 4'),
    'print_config': Command('print the config that training runs with', 'config.py --ema'),
    'train': Command('train a segmentor', 'config.py --amp bf16 --ema'),
    'test': Command('evaluate a checkpoint', 'config.py checkpoint.pth --tta'),
    'weights': Command('list, find and download weights by name', 'list'),
    'infer': Command('segment images, folders and videos', 'checkpoint.pth photos/ --out-dir results'),
    'pseudo-label': Command('label images by a model, unsure pixels 255', 'checkpoint.pth photos/ --out masks'),
    'review': Command('find wrong labels: where a model disagrees', 'checkpoint.pth config.py --out review'),
    'raster': Command('segment a TIFF or GeoTIFF of any size', 'config.py checkpoint.pth scene.tif labels.tif'),
    'serve': Command('serve an HTTP API that segments images, and a page that uses it', 'checkpoint.pth --port 7860'),
    'analyze_logs': Command('plot loss, learning rate and mIoU of runs', 'work_dirs/a work_dirs/b --out curves.png'),
    'report': Command('write one HTML page about a run', 'work_dirs/a'),
    'export': Command('write an ONNX file, compared with PyTorch first', 'config.py checkpoint.pth model.onnx'),
    'benchmark': Command('measure latency, throughput and memory by stage', 'config.py --size 256 512 --repeat 3'),
    'flops': Command('count parameters and operations of a config', 'config.py --shape 512 1024'),
    'eval': Command('score label images of any model', 'predictions truth --classes-file data/mine/classes.txt'),
    'submit': Command('pack or validate a benchmark submission', 'predictions submission.zip --dataset cityscapes'),
    'publish': Command('write a model folder that others can load', 'config.py checkpoint.pth my-model'),
    'completion': Command('print a script that completes words in a shell', 'bash'),
    'volo2mmseg': Command('convert official or timm weights to a backbone file', 'volo_d1_224 backbone.safetensors'),
}
"""The commands in the order in which a user meets them."""


def run_tool(name: str, argv: Sequence[str] | None = None) -> None:
    """Run the command ``name`` and exit with its status: 0 done, 2 a user's mistake, 130 interrupted."""
    sys.exit(run(name, argv, last=True))


def run(name: str, argv: Sequence[str] | None = None, *, last: bool = False) -> int:
    """Run the command ``name`` and return its exit status. A ``UserError`` is printed to stderr, without a traceback.

    Args:
        name: A key of ``COMMANDS``.
        argv: Arguments of the command; by default those of the process.
        last: Whether the process ends after the command.
    """
    quiet_imports()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the locale does not have ends no command
        sys.stdout.reconfigure(errors='backslashreplace')
    # idle OpenMP threads sleep: busy waiting slows down a machine that has other work
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # commands report damaged images themselves
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')
    warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')
    with Signals(last=last) as signals:
        try:
            for word in sys.argv[1:] if argv is None else argv:
                check_utf8(word)
            command = importlib.import_module(f'{__name__}.{name.replace("-", "_")}')
            signals.check()
            status = command.main(argv)
            signals.check()
            return status
        except BaseException as error:
            try:
                reason = signals.meant(error)
            except KeyboardInterrupt as late:  # a signal came while another error was handled
                reason = signals.meant(late)
            return conclude(reason)


def conclude(error: BaseException) -> int:
    """Print the reason why a command ended and return its exit status; unexpected exceptions are raised again."""
    if isinstance(error, KeyboardInterrupt):
        if os.environ.get('RANK', '0') == '0':
            print_message(f'\n{str(error) or "interrupted"}')
        return getattr(error, 'status', 130)
    if isinstance(error, pickle.UnpicklingError):  # a file that a package of someone else reads by torch.load
        error = UserError(f'a weights file is refused ({refused(error)}): give weights alone, as .safetensors')
    if isinstance(error, UserError):
        print_error(error)
        return 2
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    raise error


def print_error(error: UserError) -> None:
    """Print the message to stderr; below :mod:`volo_seg.engine.torchrun`, write it to the file that torchrun reads."""
    import json

    from volo_seg.engine.torchrun import MARK

    place = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if not place or MARK not in os.environ:
        print_message(f'error: {message_of(error)}')
        return
    told = {'sentence': message_of(error), 'peer_lost': isinstance(error, PeerLost)}
    with open(place, 'w', encoding='utf-8') as file:
        json.dump({'message': message_of(error), 'timestamp': int(time.time()), **told}, file)


def refused(error: pickle.UnpicklingError) -> str:
    """The reason for which torch refused a file, without its advice to load the file unsafely."""
    found = re.search(r'GLOBAL (\S+) ', str(error))
    return f'it asks for {found[1]} on loading' if found else 'it is damaged or holds more than weights'


def quiet_imports() -> None:
    """Silence warnings of dependencies about optional parts that are not used here."""
    warnings.filterwarnings('ignore', message='Default ``avg_non_ignore`` is False')
    warnings.filterwarnings('ignore', message='.* is installed but broken')
    warnings.filterwarnings('ignore', message='The draw is False')
    warnings.filterwarnings('ignore', message='.*`torch.jit.*deprecated')


def load_stack() -> None:
    """Register this package with MMSegmentation; no file starts Ghostscript or is unpickled from then on."""
    importlib.import_module('volo_seg.register')
    importlib.import_module('PIL.EpsImagePlugin').gs_binary = False  # type: ignore[attr-defined]
    importlib.import_module('volo_seg.checkpoints.mmengine_loaders').forbid_unpickling()


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``volo-seg COMMAND [arguments]`` and return its exit status."""
    from volo_seg import __version__

    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ['--version']:
        print(f'volo-seg {__version__}')
        return 0
    if not words or words[0] in ('-h', '--help'):
        print('usage: volo-seg COMMAND [arguments]')
        print('       volo-seg IMAGE      segment it with the model that ships (as infer)')
        print('       volo-seg --version')
        print('\ncommands (volo-seg COMMAND --help prints the arguments):')
        print('\n'.join(f'  {name:<14}{command.summary}' for name, command in COMMANDS.items()))
        return 0
    if words[0] not in COMMANDS and os.path.exists(words[0]):
        return run('infer', words, last=True)
    if words[0] not in COMMANDS:
        print_message(f'error: {words[0]!r} is not a command, nor is it a file; one of: {", ".join(COMMANDS)}')
        return 2
    return run(words[0], words[1:], last=True)
