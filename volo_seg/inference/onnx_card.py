"""What an exported ONNX file says about itself, in its metadata: enough to run it without this project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from volo_seg.errors import UserError

FORMAT = 'volo-seg-onnx-1'
KINDS = ('logits', 'labels')
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
    """Sliding windows over the resized image, in pixels; ``window_starts`` of the segmentor says where they lie.

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
                f'{name} has no metadata of the form {FORMAT} (it says {metadata.get("format")!r}): '
                'write it with volo-seg export'
            )
        try:
            values = {f.name: _frozen(json.loads(metadata[f.name])) for f in fields(cls)}
            for key, kind in (('input', Input), ('resize', Resize), ('windows', Windows), ('output', Output)):
                values[key] = None if values[key] is None else kind(**values[key])
            card = cls(**values)
            card._check()
            return card
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f'{name} has damaged metadata ({error}): export it again') from error

    def _check(self) -> None:
        """Raise ValueError where fields contradict each other or lead nowhere, TypeError for another kind of value."""
        if not self.classes or len(self.palette) != len(self.classes) or not all(map(_is_colour, self.palette)):
            raise ValueError(f'{len(self.classes)} classes, {len(self.palette)} colours')
        numbers: list[float] = [*self.input.std]
        if self.resize is not None:
            numbers += self.resize.scale or self.resize.scale_factor or (0,)
        if self.windows is not None:
            numbers += [*self.windows.crop_size, *self.windows.stride, *self.windows.down, *self.windows.across]
        if min(numbers) <= 0 or len(self.input.mean) != 3 or len(self.input.std) != 3:
            raise ValueError('a size or a scale that is not above 0')
        words = (self.input.channels, self.input.dtype, self.output.kind)
        if not all(w in known for w, known in zip(words, (('BGR', 'RGB'), ('uint8', 'float32'), KINDS), strict=True)):
            raise ValueError(f'unknown words {", ".join(map(str, words))}')


def _is_colour(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in value)


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value
