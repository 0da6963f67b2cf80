"""Replace the loaders of MMEngine and torch that run code from the files that a config names.

MMEngine's ``CheckpointLoader`` unpickles a file if safe loading fails; its file handlers unpickle ``.pkl`` and build
any object from ``.yaml``. :func:`forbid_unpickling` replaces them in this process through MMEngine's registration
functions. The commands, ``SafeRunner`` and ``Predictor`` call it; importing volo_seg does not. Importing the models
only makes the names of weights known (:func:`register_names`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from volo_seg.checkpoints.read import load_file
from volo_seg.errors import UserError
from volo_seg.weights import WEIGHTS

_FIX = 'download the file and give its path, or an http(s) URL'


def forbid_unpickling() -> None:
    """Make all code in this process read weights by :func:`.load_file`, and data files without pickle.

    ``torch.load`` is safe too, also in child processes and with ``weights_only=False``: torch reads the environment
    variable at each call, and it has priority over the argument.
    """
    from mmengine.fileio import register_handler
    from mmengine.runner import CheckpointLoader

    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)  # torch.load fails if both are set
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    # handlers that other packages registered are replaced too; custom_imports of a config are imported later
    CheckpointLoader.register_scheme(['', *CheckpointLoader._schemes], load_from_config, force=True)
    pickles, yaml = _handlers()
    register_handler(['pkl', 'pickle'])(pickles)
    register_handler(['yaml', 'yml'])(yaml)


def register_names() -> None:
    """Let MMEngine's loader, which MMSegmentation's tools use too, read what a name of the table of weights means."""
    from mmengine.runner import CheckpointLoader

    CheckpointLoader.register_scheme(list(WEIGHTS), load_from_config, force=True)


def load_from_config(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read the weights that a config names.

    Args:
        filename: A source for :func:`.load_file`, a name in MMEngine's model zoos, or a file of a storage backend that
            is registered in MMEngine.
        map_location: A device; a function counts as the CPU.

    Raises:
        UserError: See :func:`.load_file` and :func:`address`.
    """
    from mmengine.fileio import get_file_backend
    from mmengine.fileio.backends import prefix_to_backends

    scheme, marked, _ = os.fspath(filename).partition('://')
    if marked and scheme in prefix_to_backends.keys() - {'http', 'https'}:
        with contextlib.suppress(ImportError):  # the package of MMEngine's own s3:// is not public
            backend = get_file_backend(filename)
            if not backend.isfile(filename):
                raise UserError(f'{filename} does not exist: correct the address')
            with backend.get_local_path(filename) as path:
                return load_file(path)
    source = address(os.fspath(filename))
    content = load_file(source, map_location='cpu' if callable(map_location) else map_location or 'cpu')
    if filename.startswith('mmcls://'):  # a classifier, of which the backbone is used
        state = content.get('state_dict', content)
        return {'state_dict': {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}}
    return content


def address(source: str) -> str:
    """Translate a name in MMEngine's model zoos to a path or URL; return any other ``source`` as it is.

    Raises:
        UserError: The zoo, the name or the storage scheme is unknown.
    """
    zoo, marked, name = source.partition('://')
    if not marked or zoo in ('http', 'https', 'file'):
        return source
    from mmengine.runner import checkpoint as mmengine_checkpoint

    tables: dict[str, Callable[[], dict[str, str]]] = {
        'torchvision': mmengine_checkpoint.get_torchvision_models,
        'openmmlab': mmengine_checkpoint.get_external_models,
        'mmcls': mmengine_checkpoint.get_mmcls_models,
    }
    zoo = {'modelzoo': 'torchvision', 'open-mmlab': 'openmmlab'}.get(zoo, zoo)
    if zoo not in tables:
        raise UserError(f'{source} has a scheme that is not supported: {_FIX}')
    if zoo == 'openmmlab':
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    try:
        found = tables[zoo]()[name]
    except ImportError as error:
        raise UserError(f'{source} needs {error.name}, which is not installed: {_FIX}') from error
    except KeyError:
        raise UserError(f"{name!r} is not a model of MMEngine's table {zoo}://: {_FIX}") from None
    if '://' in found or zoo != 'openmmlab':
        return found
    return str(Path(mmengine_checkpoint._get_mmengine_home(), found))


def _handlers() -> tuple[type, type]:
    import yaml
    from mmengine.fileio.handlers import PickleHandler, YamlHandler

    class WriteOnlyPickleHandler(PickleHandler):
        """Write pickles as MMEngine does, and refuse to read them."""

        def load_from_fileobj(self, file: Any, **_: Any) -> Any:
            raise UserError(
                f'{getattr(file, "name", "a file")} that the config names is a pickle, which can run code when it is '
                'read: write its content as .json and use that file'
            )

    class SafeYamlHandler(YamlHandler):
        """Read YAML files that contain plain values only."""

        def load_from_fileobj(self, file: Any, **_: Any) -> Any:
            try:
                return yaml.safe_load(file)
            except yaml.YAMLError as error:
                reason = ' '.join(str(error).split())[:200]
                raise UserError(
                    f'a YAML file that the config names has more than plain values ({reason}): use plain values'
                ) from error

    return WriteOnlyPickleHandler, SafeYamlHandler
