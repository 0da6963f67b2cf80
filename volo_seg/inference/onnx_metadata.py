"""The metadata of an exported ONNX file: all that is needed to run it without this project."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from volo_seg.errors import UserError
from volo_seg.imageio import BACKENDS, COLOR_TYPES, Reading

FORMAT = 'volo-seg-onnx-1'
KINDS = ('logits', 'labels')
MOST_CHARACTERS = 2**22
"""Largest number of characters in one metadata entry."""
MOST_CLASSES = 65536
MOST_NAME = 256
"""Largest number of characters in a class name; all must be printable."""
MOST_SIDE = 2**17
"""Largest side in pixels of a window, and of a resized image."""
MOST_FACTOR = 64
"""Largest factor by which an image is enlarged or reduced."""
LEAST_WINDOW = 16
"""Smallest side of a window in pixels; smaller windows take hours per image."""
MOST_OVERLAP = 8
"""Largest ratio of window side to stride, for the same reason."""
Size = tuple[int, int]


@dataclass(frozen=True)
class InputSpec:
    """The input of the graph, (B, 3, H, W) of any B, H and W.

    Attributes:
        name: Name of the input.
        channels: ``'BGR'`` or ``'RGB'``.
        dtype: ``'uint8'``: pixels, which the graph normalizes. ``'float32'``: (pixel - ``mean``) / ``std``.
        mean, std: Values of the channels, in the order of ``channels``.
    """

    name: str = 'image'
    channels: str = 'RGB'
    dtype: str = 'float32'
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class ResizeSpec:
    """Bilinear resizing of the image before the network (``cv2.INTER_LINEAR`` on uint8), in pixels.

    Attributes:
        scale: (width, height); with ``keep_ratio`` the upper bounds of the longer and the shorter side.
        scale_factor: (horizontal, vertical), if there is no ``scale``.
        keep_ratio: Whether the aspect ratio is kept.
    """

    scale: Size | None = None
    scale_factor: tuple[float, float] | None = None
    keep_ratio: bool = False


@dataclass(frozen=True)
class WindowSpec:
    """Sliding windows over the resized image, in pixels, placed by :class:`volo_seg.windows.WindowGrid`.

    Attributes:
        crop_size, stride: (vertical, horizontal).
        down, across: Weights of the pixels along each side of a window; empty if all are equal.
    """

    crop_size: Size
    stride: Size
    down: tuple[float, ...] = ()
    across: tuple[float, ...] = ()


@dataclass(frozen=True)
class OutputSpec:
    """The output of the graph, at the height and width of the input.

    Attributes:
        name: Name of the output.
        kind: ``'logits'`` (B, channels, H, W) float32, or ``'labels'`` (B, H, W), indices into the classes.
        align_corners: Argument of the bilinear resizing of logits.
        threshold: For one channel: pixels whose sigmoid exceeds it are of class 1.
    """

    name: str = 'logits'
    kind: str = 'logits'
    align_corners: bool = False
    threshold: float | None = None


@dataclass(frozen=True)
class OnnxMetadata:
    """One entry for each field, its value as JSON; ``source`` describes what the file was exported from."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]
    reading: Reading = field(default_factory=Reading)
    input: InputSpec = field(default_factory=InputSpec)
    resize: ResizeSpec | None = None
    windows: WindowSpec | None = None
    output: OutputSpec = field(default_factory=OutputSpec)
    source: Mapping[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """The entries for the ``metadata_props`` of a model."""
        return {'format': FORMAT, **{key: json.dumps(value) for key, value in asdict(self).items()}}

    @classmethod
    def from_metadata(cls, entries: Mapping[str, str], *, name: str) -> OnnxMetadata:
        """Parse the metadata ``entries`` of the file ``name``, as :meth:`to_metadata` makes them.

        Raises:
            UserError: The file was not written by this project, by another version of it, or is damaged.
        """
        if entries.get('format') != FORMAT:
            raise UserError(
                f'{name} has no metadata of the format {FORMAT} (found {entries.get("format", "")[:40]!r}): '
                'write it with volo-seg export'
            )
        for key, text in entries.items():
            if len(text) > MOST_CHARACTERS:
                raise UserError(f'{name} has {len(text):,} characters of metadata {key!r}: export it again')
        specs = {
            'reading': Reading,
            'input': InputSpec,
            'resize': ResizeSpec,
            'windows': WindowSpec,
            'output': OutputSpec,
        }
        try:
            entries = {'reading': '{}', **entries}  # files of version 0.1 have none
            values = {f.name: _to_tuples(json.loads(entries[f.name])) for f in fields(cls)}
            for key, spec in specs.items():
                values[key] = None if values[key] is None else spec(**values[key])
            metadata = cls(**values)
            metadata._check()
        except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
            reason = ' '.join(str(error).split())[:160]
            raise UserError(f'{name} has damaged metadata ({reason}): export it again') from error
        return metadata

    def _check(self) -> None:
        """Raise ValueError for a field of a wrong type or out of range."""
        _check(_is_tuple(self.classes, str) and 0 < len(self.classes) <= MOST_CLASSES, 'classes', self.classes)
        _check(all(name.isprintable() and len(name) <= MOST_NAME for name in self.classes), 'classes', self.classes)
        _check(_is_tuple(self.palette, tuple) and len(self.palette) == len(self.classes), 'palette', self.palette)
        colours = all(_is_tuple(c, int, 3) and all(0 <= v <= 255 for v in c) for c in self.palette)
        _check(colours, 'palette', self.palette)
        _check(isinstance(self.source, dict), 'source', self.source)
        reading = self.reading
        black, white = (0, 1) if reading.value_range is None else reading.value_range
        _check(_are_numbers((black, white), 2) and black < white, 'reading', reading)
        _check(reading.color_type in (None, *COLOR_TYPES) and reading.backend in BACKENDS, 'reading', reading)
        spec = self.input
        _check(isinstance(spec, InputSpec) and isinstance(spec.name, str), 'input', spec)
        _check(spec.channels in ('BGR', 'RGB') and spec.dtype in ('uint8', 'float32'), 'input', spec)
        _check(_are_numbers(spec.mean, 3) and _are_numbers(spec.std, 3) and min(spec.std) > 0, 'input', spec)
        output = self.output
        _check(isinstance(output, OutputSpec) and isinstance(output.name, str), 'output', output)
        _check(output.kind in KINDS and isinstance(output.align_corners, bool), 'output', output)
        _check(output.threshold is None or _are_numbers((output.threshold,), 1), 'output.threshold', output.threshold)
        if self.resize is not None:
            self._check_resize(self.resize)
        if self.windows is not None:
            self._check_windows(self.windows)

    def _check_resize(self, spec: ResizeSpec) -> None:
        _check(isinstance(spec.keep_ratio, bool) and (spec.scale or spec.scale_factor), 'resize', spec)
        if spec.scale is not None:
            _check(_is_tuple(spec.scale, int, 2) and all(0 < v <= MOST_SIDE for v in spec.scale), 'resize', spec)
        if spec.scale_factor is not None:
            _check(_are_numbers(spec.scale_factor, 2), 'resize', spec)
            _check(all(1 / MOST_FACTOR <= v <= MOST_FACTOR for v in spec.scale_factor), 'resize', spec)

    def _check_windows(self, spec: WindowSpec) -> None:
        _check(_is_tuple(spec.crop_size, int, 2) and _is_tuple(spec.stride, int, 2), 'windows', spec)
        for crop, stride in zip(spec.crop_size, spec.stride, strict=True):
            _check(LEAST_WINDOW <= crop <= MOST_SIDE and crop <= stride * MOST_OVERLAP, 'windows', spec)
            _check(stride <= crop, 'windows', spec)
        for weights, length in zip((spec.down, spec.across), spec.crop_size, strict=True):
            valid = weights == () or (_are_numbers(weights, length) and min(weights) > 0)
            _check(valid, 'windows weights', len(weights))


def _check(holds: Any, what: str, value: Any) -> None:
    if not holds:
        raise ValueError(f'{what}={str(value)[:80]!r} is not a value that volo-seg export writes')


def _is_tuple(value: Any, kind: type, length: int | None = None) -> bool:
    """Whether ``value`` is a tuple of ``length`` values of type ``kind``; bools do not count as int."""
    valid = isinstance(value, tuple) and (length is None or len(value) == length)
    return valid and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def _are_numbers(value: Any, length: int) -> bool:
    """Whether ``value`` is a tuple of ``length`` finite numbers."""
    valid = isinstance(value, tuple) and len(value) == length
    return valid and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value)


def _to_tuples(value: Any) -> Any:
    """Replace lists by tuples, recursively."""
    if isinstance(value, list):
        return tuple(map(_to_tuples, value))
    return {key: _to_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
