"""The prediction for one image, and the files that it is written to."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from volo_seg.errors import UserError, prefixed
from volo_seg.inference.annotation_files import ANNOTATION_FILES
from volo_seg.inference.class_shares import ShareTable, share_row
from volo_seg.inference.output_formats import DEFAULT, OUTPUT_FORMATS, check_kinds
from volo_seg.inference.parquet import ParquetTable, result_row
from volo_seg.inference.polygons import geojson, labelme
from volo_seg.inference.remote import Location, locate, target_file, write_file
from volo_seg.label_png import encode_labels
from volo_seg.visualization import colourize, overlay


@dataclass(frozen=True)
class Result:
    """The prediction for one image, at the size of the image.

    Attributes:
        image: (H, W, 3) uint8, BGR: the image, rotated as EXIF says.
        labels: (H, W) uint8 (int32 above 256 classes): index into ``classes`` of each pixel.
        classes: Class names.
        palette: (len(classes), 3) uint8, RGB.
        confidence: (H, W) float32 in [0, 1]: probability of the label of each pixel; None unless asked for.
        probabilities: (len(classes), H, W) float32 in [0, 1]; None unless asked for.
        name: Name of output files without suffix: that of the image file; None for arrays.
    """

    image: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    palette: np.ndarray = field(repr=False)
    confidence: np.ndarray | None = field(default=None, repr=False)
    probabilities: np.ndarray | None = field(default=None, repr=False)
    name: str | None = None

    def colour(self) -> np.ndarray:
        """The colour of each label, (H, W, 3) uint8, BGR."""
        return colourize(self.labels, self.palette[:, ::-1])

    def overlay(self, *, opacity: float = 0.5) -> np.ndarray:
        """The colours over the image, (H, W, 3) uint8, BGR; ``opacity`` is that of the colours, in [0, 1]."""
        return overlay(self.image, self.labels, self.palette[:, ::-1], opacity=opacity)

    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class that occurs, in [0, 1], largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes)) / self.labels.size
        return {self.classes[i]: float(counts[i]) for i in np.argsort(-counts, kind='stable') if counts[i] > 0}

    def encode(self, kind: str, *, opacity: float = 0.5, image_path: str = '', suffix: str = '') -> bytes:
        """The content of the file of ``kind``.

        Args:
            kind: A key of :data:`volo_seg.inference.output_formats.OUTPUT_FORMATS` with one file per image.
            opacity: Opacity of the colours of an overlay, in [0, 1].
            image_path: Path of the image for a labelme document, relative to the document.
            suffix: Suffix of another image format than that of the kind, such as ``'.png'`` for an overlay.

        Raises:
            UserError: ``kind`` was not computed, or the format cannot hold an image of this size.
        """
        needs = OUTPUT_FORMATS[kind].needs
        if needs and getattr(self, needs) is None:
            raise UserError(f'{kind} needs the {needs} of the pixels; call the predictor with {needs}=True')
        if kind == 'labels':
            return encode_labels(self.labels.astype(np.uint8 if len(self.classes) <= 256 else np.uint16))
        if kind == 'probabilities':
            assert self.probabilities is not None
            stream = io.BytesIO()
            halves = self.probabilities.astype(np.float16)
            np.savez_compressed(stream, probabilities=halves, classes=np.array(self.classes))
            return stream.getvalue()
        if kind in ('geojson', 'labelme'):
            document = (
                geojson(self.labels, self.classes, self.palette)
                if kind == 'geojson'
                else labelme(self.labels, self.classes, image_path=image_path)
            )
            return json.dumps(document, ensure_ascii=False, separators=(',', ':')).encode()
        if kind == 'overlay':
            image = self.overlay(opacity=opacity)
        elif kind == 'colour':
            image = self.colour()
        else:
            assert self.confidence is not None
            dtype = np.uint16 if kind == 'confidence16' else np.uint8
            image = np.rint(np.iinfo(dtype).max * np.clip(self.confidence, 0, 1).astype(np.float64)).astype(dtype)
        return _encode_image(image, suffix or OUTPUT_FORMATS[kind].suffix)

    def save(
        self,
        folder: str | Path,
        kinds: Sequence[str] = DEFAULT,
        *,
        name: str | None = None,
        opacity: float = 0.5,
        source: Location | None = None,
    ) -> list[Location]:
        """Write one file of each kind, and return their paths; files for all images get this image too.

        Args:
            folder: Output folder, a path or URL; created if it does not exist.
            kinds: Keys of :data:`volo_seg.inference.output_formats.OUTPUT_FORMATS`.
            name: Name of the files without suffix, subfolders allowed; by default :attr:`name`.
            opacity: Opacity of the colours of an overlay, in [0, 1].
            source: The image file, which annotations and the table of shares name.

        Raises:
            UserError: A kind is unknown or was not computed, the format cannot hold the image, or there is no name.
            WriteError: A file cannot be written, or ``name`` leads out of ``folder``.
        """
        name = name or self.name
        if not name:
            raise UserError('a result of an image without a file name needs a name: save(folder, name=...)')
        paths: list[Location] = []
        for kind in check_kinds(kinds):
            if kind == 'shares':
                table = ShareTable(Path(folder), self.classes)
                row = share_row(name, self.labels, class_count=len(self.classes), source=source)
                table.merge({name: row})
                paths.append(table.path)
                continue
            if kind == 'parquet':
                parts = ParquetTable(locate(folder))
                parts.drop({name})
                parts.add(result_row(name, self.labels, classes=self.classes, source=source, model=''))
                parts.flush()
                paths.append(parts.place)
                continue
            if kind in ANNOTATION_FILES:
                document = ANNOTATION_FILES[kind](Path(folder), self.classes, self.palette)
                document.add([(f'{name}{Path(source).suffix if source else ".jpg"}', self.labels)])
                paths.append(document.path)
                continue
            place = OUTPUT_FORMATS[kind]
            # first the name alone: '../x' must not lead into the folder of another kind
            target_file(f'{folder}/{place.folder}', name)
            path = target_file(folder, f'{place.folder}/{name}{place.suffix}')
            image_path = str(source or f'{Path(name).name}.jpg')
            if isinstance(source, Path) and isinstance(path, Path):
                # labelme looks for the image from the folder of the document
                image_path = Path(os.path.relpath(source.resolve(), path.parent)).as_posix()
            with prefixed(str(path)):
                content = self.encode(kind, opacity=opacity, image_path=image_path)
            write_file(path, content)
            paths.append(path)
            if kind == 'labelme':
                listed = target_file(folder, f'{place.folder}/labels.txt')
                names = ''.join(f'{name}\n' for name in self.classes).encode()
                if isinstance(listed, str) or not listed.exists() or listed.read_bytes() != names:
                    write_file(listed, names)
        return paths


@dataclass(frozen=True)
class Failure:
    """An image that could not be segmented, and the reason in one sentence."""

    source: Any
    reason: str


def _encode_image(image: np.ndarray, suffix: str) -> bytes:
    try:
        done, data = cv2.imencode(suffix, image)
    except cv2.error:
        done = False
    if not done:
        height, width = image.shape[:2]
        raise UserError(f'a {suffix} file cannot hold {width} x {height} pixels; choose other --kinds')
    return data.tobytes()
