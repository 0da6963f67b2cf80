"""Prediction with a program of PyTorch: a file of ``torch.export`` (``.pt2``) or of TorchScript (``.ts``)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.exported_predictor import ExportedPredictor, short

TRUST = 'VOLO_SEG_TRUST_PROGRAMS'
"""The environment variable by which a user says that program files come from a trusted source."""
ENTRY = 'volo_seg.json'
"""The extra file of a program that holds the metadata."""
KINDS = {'.pt2': 'torch.export', '.ts': 'TorchScript'}


class TorchProgramPredictor(ExportedPredictor):
    """Segments images with a program that PyTorch loads.

    Loading can run code of the file, so it is refused unless the environment variable ``VOLO_SEG_TRUST_PROGRAMS`` is 1.
    """

    kind, runtime = 'program', 'PyTorch'

    def _open(self, path: Path, *, device: str, threads: int) -> dict[str, str]:
        if os.environ.get(TRUST) != '1':
            raise UserError(
                f'{str(path)!r} is a program, whose code PyTorch can run when it loads it; if you trust its source, '
                f'set {TRUST}=1 in the environment, or use an .onnx file'
            )
        import torch

        from volo_seg.inference.predictor import select_device

        self.device = select_device(device)
        if threads:
            torch.set_num_threads(threads)
        program, entries = load_program(path)
        self.program = runnable(program, self.device)
        return entries

    def _run(self, image: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            output = self.program(torch.from_numpy(image).to(self.device))
        return (output[-1] if isinstance(output, (tuple, list)) else output).cpu().numpy()


def load_program(path: Path) -> tuple[Any, dict[str, str]]:
    """The program of a trusted file as a function of a tensor, and the entries of its metadata.

    Raises:
        UserError: PyTorch does not load the file.
    """
    import torch

    extra = {ENTRY: ''}
    try:
        if path.suffix == '.ts':
            program: Any = torch.jit.load(str(path), map_location='cpu', _extra_files=extra)
        else:
            program = torch.export.load(path, extra_files=extra)
        entries = json.loads(extra[ENTRY] or '{}')
    except Exception as error:  # PyTorch raises many kinds for a damaged file
        raise UserError(
            f'{str(path)!r} is not a {KINDS[path.suffix]} file that PyTorch loads ({short(error)})'
        ) from error
    return program, {str(key): str(value) for key, value in entries.items()} if isinstance(entries, dict) else {}


def runnable(program: Any, device: Any = None) -> Any:
    """What :func:`load_program` gave, as a function of a tensor, on ``device`` (default: where it was saved)."""
    import torch

    if isinstance(program, torch.jit.ScriptModule):
        return program if device is None else program.to(device)
    if device is not None and device.type != 'cpu':
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    # its guards say what was true of the traced size; at other sizes the graph was compared when it was exported
    return program.module(check_guards=False)
