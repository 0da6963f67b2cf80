"""What an exported ONNX file says about itself, in its metadata: enough to run it without this project."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from volo_seg.errors import UserError

FORMAT = 'volo-seg-onnx-1'
KINDS = ('logits', 'labels')
MOST_CHARACTERS = 2**22
"""Of one entry of the metadata."""
MOST_CLASSES = 65536
MOST_NAME = 256
"""Characters of a class name, all printable."""
MOST_SIDE = 2**17
"""Pixels of a window's side, and of the size that an image is resized to."""
MOST_FACTOR = 64
"""By which an image is enlarged or reduced at most."""
LEAST_WINDOW = 16
"""Pixels of a window's side at least: smaller ones keep a processor busy for hours."""
MOST_OVERLAP = 8
"""Times that the stride goes into a window's side at most, for the same reason."""
Size = tuple[int, int]


@dataclass(frozen=True)
class Input:
    """The network's input, (B, 3, H, W) of any B, H and W.

    Attributes:
        name: Of the graph's input.
        channels: ``'BGR'`` or ``'RGB'``.
        dtype: ``'uint8'``: pixels as they are, the graph normalises. ``'float32'``: (pixel - ``mean``) / ``std``.
        mean, std: For each channel, in the order of ``channels``.
    """

    name: str = 'image'
    channels: str = 'RGB'
    dtype: str = 'float32'
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Resize:
    """How an image is resized for the network, in pixels, bilinear (``cv2.INTER_LINEAR`` on uint8).

    Attributes:
        scale: (width, height) to reach; with ``keep_ratio`` the longer and the shorter side that it must not exceed.
        scale_factor: (across, down), where there is no ``scale``.
        keep_ratio: Whether sides keep their ratio.
    """

    scale: Size | None = None
    scale_factor: tuple[float, float] | None = None
    keep_ratio: bool = False


@dataclass(frozen=True)
class Windows:
    """Sliding windows over the resized image, in pixels; placed as :class:`volo_seg.windows.WindowGrid` does.

    Attributes:
        crop_size, stride: (down, across).
        down, across: What each pixel along a window's side counts in the mean; empty where all count the same.
    """

    crop_size: Size
    stride: Size
    down: tuple[float, ...] = ()
    across: tuple[float, ...] = ()


@dataclass(frozen=True)
class Output:
    """The network's output, at the input's height and width.

    Attributes:
        name: Of the graph's output.
        kind: ``'logits'`` (B, channels, H, W) float32, or ``'labels'`` (B, H, W), indices into the classes.
        align_corners: How logits are enlarged.
        threshold: Of the sigmoid of the only channel, where there is just one: above it lies class 1.
    """

    name: str = 'logits'
    kind: str = 'logits'
    align_corners: bool = False
    threshold: float | None = None


@dataclass(frozen=True)
class OnnxCard:
    """Metadata of a file: a key for each field, its value as JSON; ``source`` says what it was made from."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, ...], ...]
    input: Input = field(default_factory=Input)
    resize: Resize | None = None
    windows: Windows | None = None
    output: Output = field(default_factory=Output)
    source: Mapping[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Keys and JSON values for the ``metadata_props`` of a model."""
        return {'format': FORMAT, **{key: json.dumps(value) for key, value in asdict(self).items()}}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], *, name: str) -> OnnxCard:
        """Read what :meth:`to_metadata` wrote; ``name`` is the file's.

        Raises:
            UserError: The file was not written by this project, or by another version of it, or it is damaged.
        """
        if metadata.get('format') != FORMAT:
            raise UserError(
                f'{name} has no metadata of the form {FORMAT} (it says {metadata.get("format", "")[:40]!r}): '
                'write it with volo-seg export'
            )
        long = [key for key, text in metadata.items() if len(text) > MOST_CHARACTERS]
        if long:
            raise UserError(
                f'{name} has {len(metadata[long[0]]):,} characters of metadata {long[0]!r}: export it again'
            )
        try:
            values = {f.name: _frozen(json.loads(metadata[f.name])) for f in fields(cls)}
            for key, kind in (('input', Input), ('resize', Resize), ('windows', Windows), ('output', Output)):
                values[key] = None if values[key] is None else kind(**values[key])
            card = cls(**values)
            card._check()
            return card
        except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
            told = ' '.join(str(error).split())[:160]
            raise UserError(f'{name} has damaged metadata ({told}): export it again') from error

    def _check(self) -> None:
        """Raise ValueError where a field has another kind of value, or one that leads nowhere."""
        _need(_tuple(self.classes, str) and 0 < len(self.classes) <= MOST_CLASSES, 'classes', self.classes)
        _need(all(name.isprintable() and len(name) <= MOST_NAME for name in self.classes), 'classes', self.classes)
        _need(_tuple(self.palette, tuple) and len(self.palette) == len(self.classes), 'palette', self.palette)
        _need(all(_tuple(c, int, 3) and all(0 <= v <= 255 for v in c) for c in self.palette), 'palette', self.palette)
        _need(isinstance(self.source, dict), 'source', self.source)
        self._check_input()
        self._check_resize()
        self._check_windows()
        output = self.output
        _need(isinstance(output, Output) and isinstance(output.name, str), 'output', output)
        _need(output.kind in KINDS and isinstance(output.align_corners, bool), 'output', output)
        _need(output.threshold is None or _numbers((output.threshold,), 1), 'output.threshold', output.threshold)

    def _check_input(self) -> None:
        rule = self.input
        _need(isinstance(rule, Input) and isinstance(rule.name, str), 'input', rule)
        _need(rule.channels in ('BGR', 'RGB') and rule.dtype in ('uint8', 'float32'), 'input', rule)
        _need(_numbers(rule.mean, 3) and _numbers(rule.std, 3) and min(rule.std) > 0, 'input', rule)

    def _check_resize(self) -> None:
        rule = self.resize
        if rule is None:
            return
        _need(isinstance(rule.keep_ratio, bool) and (rule.scale or rule.scale_factor), 'resize', rule)
        if rule.scale is not None:
            _need(_tuple(rule.scale, int, 2) and all(0 < v <= MOST_SIDE for v in rule.scale), 'resize', rule)
        if rule.scale_factor is not None:
            _need(_numbers(rule.scale_factor, 2), 'resize', rule)
            _need(all(1 / MOST_FACTOR <= v <= MOST_FACTOR for v in rule.scale_factor), 'resize', rule)

    def _check_windows(self) -> None:
        rule = self.windows
        if rule is None:
            return
        _need(_tuple(rule.crop_size, int, 2) and _tuple(rule.stride, int, 2), 'windows', rule)
        for crop, stride in zip(rule.crop_size, rule.stride, strict=True):
            _need(LEAST_WINDOW <= crop <= MOST_SIDE and crop <= stride * MOST_OVERLAP, 'windows', rule)
            _need(stride <= crop, 'windows', rule)
        for weights, length in zip((rule.down, rule.across), rule.crop_size, strict=True):
            _need(weights == () or (_numbers(weights, length) and min(weights) > 0), 'windows weights', len(weights))


def _need(holds: Any, what: str, value: Any) -> None:
    if not holds:
        raise ValueError(f'{what}={str(value)[:80]!r} is not what volo-seg export writes')


def _tuple(value: Any, kind: type, length: int | None = None) -> bool:
    """Whether ``value`` is a tuple of ``length`` values of ``kind``, bools not counted as numbers."""
    right = isinstance(value, tuple) and (length is None or len(value) == length)
    return right and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def _numbers(value: Any, length: int) -> bool:
    """Whether ``value`` is a tuple of ``length`` finite numbers."""
    right = isinstance(value, tuple) and len(value) == length
    return right and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value)


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value
