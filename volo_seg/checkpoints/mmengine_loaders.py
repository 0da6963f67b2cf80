"""Weights and lists that MMEngine, torch.hub or timm read because a config names them: safely, or not at all.

MMEngine's ``CheckpointLoader`` tries safe loading and then unpickles; its file handlers unpickle ``.pkl`` and build any
object from ``.yaml``. :func:`forbid_unpickling` closes these ways for the whole process by MMEngine's own registration
functions. The commands, ``SafeRunner`` and ``Predictor`` call it; importing volo_seg does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from volo_seg.checkpoints.reading import load_file
from volo_seg.errors import UserError

_NO_STORAGE = 'download it and give its path, or an http(s) address'


def forbid_unpickling() -> None:
    """Let this process read weights by :func:`.load_file` and lists without pickle, whoever's code asks.

    Each ``torch.load`` is a safe one, also in child processes and with ``weights_only=False``: torch reads the variable
    at each call, and it outranks the argument.
    """
    from mmengine.fileio import register_handler
    from mmengine.runner import CheckpointLoader

    os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)  # torch loads nothing where both are set
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
    # a handler that another package registered is replaced too; a config's custom_imports are code and come later
    CheckpointLoader.register_scheme(['', *CheckpointLoader._schemes], load_from_config, force=True)
    pickles, yaml = _handlers()
    register_handler(['pkl', 'pickle'])(pickles)
    register_handler(['yaml', 'yml'])(yaml)


def load_from_config(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read the weights that a config names: what :func:`.load_file` takes, or a name of MMEngine's model zoos.

    Raises:
        UserError: See :func:`.load_file`; an unknown zoo, name or storage.
    """
    source = address(os.fspath(filename))
    content = load_file(source, map_location='cpu' if callable(map_location) else map_location or 'cpu')
    if filename.startswith('mmcls://'):  # classifiers: the backbone alone
        state = content.get('state_dict', content)
        return {'state_dict': {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}}
    return content


def address(source: str) -> str:
    """The path or the http(s) address that ``source`` means; MMEngine's tables of models translate names of its zoos.

    Raises:
        UserError: An unknown zoo, name or storage.
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
        raise UserError(f'{source} is in a storage that is not read here: {_NO_STORAGE}')
    if zoo == 'openmmlab':
        name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    try:
        found = tables[zoo]()[name]
    except ImportError as error:
        raise UserError(f'{source} needs {error.name}, which is not installed: {_NO_STORAGE}') from error
    except KeyError:
        raise UserError(f"{name!r} is not a model of MMEngine's table {zoo}://: {_NO_STORAGE}") from None
    if '://' in found or zoo != 'openmmlab':
        return found
    return str(Path(mmengine_checkpoint._get_mmengine_home(), found))


def _handlers() -> tuple[type, type]:
    import yaml
    from mmengine.fileio.handlers import PickleHandler, YamlHandler

    class WriteOnlyPickleHandler(PickleHandler):
        """Writes pickles as MMEngine does, and reads none."""

        def load_from_fileobj(self, file: Any, **_: Any) -> Any:
            raise UserError(
                f'{getattr(file, "name", "a file")} that the config names is a pickle, which can run code when it is '
                'read: write its content as .json and give that file'
            )

    class SafeYamlHandler(YamlHandler):
        """Reads YAML into plain values alone."""

        def load_from_fileobj(self, file: Any, **_: Any) -> Any:
            try:
                return yaml.safe_load(file)
            except yaml.YAMLError as error:
                told = ' '.join(str(error).split())[:200]
                raise UserError(f'a YAML file that the config names does not hold plain values ({told})') from error

    return WriteOnlyPickleHandler, SafeYamlHandler
