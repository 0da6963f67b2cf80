"""The commands: one module each with ``build_parser()`` and ``main(argv)``; ``volo-seg`` and tools/ open them."""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import re
import sys
import time
import warnings
from collections.abc import Sequence

from volo_seg.commands.signals import Signals
from volo_seg.errors import PeerLost, UserError

# name -> what it does, in the order in which a user meets them
COMMANDS = {
    'doctor': 'print the environment in one screen, for a bug report',
    'demo': 'generate data, train, evaluate, predict: the whole way in minutes',
    'toyscapes': 'generate the Toyscapes data set',
    'cityscapes': "write Cityscapes' labelTrainIds",
    'check': 'check the data of a config',
    'browse': 'draw augmented samples with their labels',
    'train': 'train a segmentor',
    'test': 'evaluate a checkpoint',
    'infer': 'segment images with a checkpoint',
    'raster': 'segment an image of any size by windows: GeoTIFF, TIFF',
    'serve': 'serve an HTTP API and a page that segment images',
    'analyze_logs': 'plot loss, learning rate and mIoU of runs',
    'report': 'write one HTML page about a run',
    'export': 'write an ONNX file, compared with PyTorch first',
    'benchmark': 'measure latency, throughput and memory by stage',
    'flops': 'count parameters and operations of a config',
    'eval': 'score label images of any model',
    'submit': 'pack or validate a benchmark submission',
    'publish': 'write a model folder that others can load',
    'volo2mmseg': 'convert official or timm weights to ours',
}


def door(name: str, argv: Sequence[str] | None = None) -> None:
    """Run the command ``name`` and exit: 0 done, 2 a mistake the user can mend, 130 interrupted."""
    sys.exit(run(name, argv, last=True))


def run(name: str, argv: Sequence[str] | None = None, *, last: bool = False) -> int:
    """Run the command ``name`` and return its exit status; a UserError becomes one sentence on stderr.

    ``last``: the process ends afterwards.
    """
    quiet_imports()
    # idle threads sleep instead of spinning: on a machine with other work, spinning costs several times the work
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    # the command names a damaged file in one sentence of its own
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')
    warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')
    with Signals(last=last) as signals:
        try:
            command = importlib.import_module(f'{__name__}.{name}')
            signals.check()
            status = command.main(argv)
            signals.check()
            return status
        except BaseException as error:
            return conclude(signals.meant(error))


def conclude(error: BaseException) -> int:
    """Print why a command ended, in one line, and return its exit status; a bug is raised again."""
    if isinstance(error, KeyboardInterrupt):
        if os.environ.get('RANK', '0') == '0':
            print(f'\n{str(error) or "interrupted"}', file=sys.stderr)
        return getattr(error, 'status', 130)
    if isinstance(error, pickle.UnpicklingError):  # a file that a package of someone else reads by torch.load
        error = UserError(f'a weights file is refused ({refused(error)}): give weights alone, as .safetensors')
    if isinstance(error, UserError):
        tell(error)
        return 2
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    raise error


def tell(error: UserError) -> None:
    """Print the message, or leave it to :mod:`volo_seg.engine.torchrun`, which prints one for all processes."""
    import json

    from volo_seg.engine.torchrun import MARK

    place = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if not place or MARK not in os.environ:
        print(f'error: {sentence(error)}', file=sys.stderr)
        return
    told = {'sentence': sentence(error), 'peer_lost': isinstance(error, PeerLost)}
    with open(place, 'w', encoding='utf-8') as file:
        json.dump({'message': sentence(error), 'timestamp': int(time.time()), **told}, file)


def sentence(error: UserError) -> str:
    """The message alone, also where a data-loading process wrapped its traceback around it."""
    return str(error).strip().rsplit('UserError: ', 1)[-1]


def refused(error: pickle.UnpicklingError) -> str:
    """What torch refused to build, without its advice to load the file unsafely."""
    found = re.search(r'GLOBAL (\S+) ', str(error))
    return f'it asks for {found[1]} on loading' if found else 'it is damaged or holds more than weights'


def quiet_imports() -> None:
    """Silence what the libraries below print about optional parts that nothing here uses."""
    warnings.filterwarnings('ignore', message='Default ``avg_non_ignore`` is False')
    warnings.filterwarnings('ignore', message='.* is installed but broken')
    warnings.filterwarnings('ignore', message='The draw is False')
    warnings.filterwarnings('ignore', message='.*`torch.jit.*deprecated')


def load_stack() -> None:
    """Import MMSegmentation without its lines about optional parts; it starts no Ghostscript and unpickles no file."""
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module('mmseg.datasets')
        importlib.import_module('volo_seg.engine.runner')
    importlib.import_module('PIL.EpsImagePlugin').gs_binary = False  # type: ignore[attr-defined]
    importlib.import_module('volo_seg.checkpoints.mmengine_loaders').forbid_unpickling()


def main(argv: Sequence[str] | None = None) -> int:
    """``volo-seg COMMAND …``"""
    from volo_seg import __version__

    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ['--version']:
        print(f'volo-seg {__version__}')
        return 0
    if not words or words[0] in ('-h', '--help'):
        print('usage: volo-seg COMMAND … (volo-seg COMMAND --help for its flags)\n')
        print('\n'.join(f'  {name:<14}{what}' for name, what in COMMANDS.items()))
        return 0
    if words[0] not in COMMANDS:
        print(f'error: {words[0]!r} is not a command; one of: {", ".join(COMMANDS)}', file=sys.stderr)
        return 2
    return run(words[0], words[1:], last=True)
