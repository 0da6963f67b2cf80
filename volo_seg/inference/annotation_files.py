"""Annotation files of all images of an output folder: COCO's JSON and CVAT's XML, which ``volo-seg import`` reads.

A class that occurs in an image is one mask, whose pixels are exactly those of the label map.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import cv2
import numpy as np

from volo_seg.errors import UserError
from volo_seg.inference.output_formats import OUTPUT_FORMATS
from volo_seg.io import atomic_write, file_lock, read_regular, safe_join


class AnnotationFile(ABC):
    """One file in an output folder, to which images are added.

    Args:
        folder: The output folder.
        classes: Class names.
        palette: (len(classes), 3) uint8, RGB.
    """

    kind: str

    def __init__(self, folder: str | Path, classes: Sequence[str], palette: np.ndarray) -> None:
        self.path = safe_join(folder, OUTPUT_FORMATS[self.kind].folder)
        self.classes, self.palette = classes, palette

    def add(self, images: Iterable[tuple[str, np.ndarray]]) -> None:
        """Add (file name, labels (H, W)) pairs; an image replaces that of the same name. Images are sorted by name.

        Raises:
            UserError: The file is not one of these classes, or it cannot be written.
        """
        with file_lock(self.path.with_name(f'.{self.path.name}.lock')):
            entries = self.read()
            entries.update((name, self.entry(name, labels)) for name, labels in images)
            atomic_write(self.path, self.encode(dict(sorted(entries.items()))))

    def read(self) -> dict[str, Any]:
        """The entries of the file by the name of their image.

        Raises:
            UserError: The file is not one of these classes.
        """
        if not self.path.exists():
            return {}
        try:
            classes, entries = self.decode(read_regular(self.path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ET.ParseError) as error:
            reason = ' '.join(str(error).split())[:120]
            raise UserError(
                f'{str(self.path)!r} cannot be read as {self.path.suffix[1:].upper()} of volo-seg infer ({reason}); '
                'name another --out-dir, or move it away'
            ) from error
        if self.classes and classes != list(self.classes):
            raise UserError(f'{str(self.path)!r} is of other classes; name another --out-dir, or move it away')
        return entries

    @abstractmethod
    def entry(self, name: str, labels: np.ndarray) -> Any:
        """The entry of an image with ``labels`` (H, W)."""

    @abstractmethod
    def encode(self, entries: Mapping[str, Any]) -> bytes:
        """The content of the file."""

    @abstractmethod
    def decode(self, content: bytes) -> tuple[list[str], dict[str, Any]]:
        """Class names and entries of a file."""


class CocoFile(AnnotationFile):
    """COCO's JSON: an annotation per class and image, with a compressed RLE; the category of class 0 has the id 1."""

    kind = 'coco'

    def entry(self, name: str, labels: np.ndarray) -> Any:
        masks = coco_mask()
        annotations = []
        for label in np.unique(labels):
            code = masks.encode(np.asfortranarray(labels == label, np.uint8))
            box, area = masks.toBbox(code).tolist(), int(masks.area(code))
            rle = {'size': code['size'], 'counts': code['counts'].decode('ascii')}
            annotations.append(
                {'category_id': int(label) + 1, 'segmentation': rle, 'area': area, 'bbox': box, 'iscrowd': 0}
            )
        height, width = labels.shape
        return {'file_name': name, 'width': width, 'height': height}, annotations

    def encode(self, entries: Mapping[str, Any]) -> bytes:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (image, found) in enumerate(entries.values(), 1):
            images.append({'id': number, **image})
            annotations += [{'id': len(annotations) + i, 'image_id': number, **one} for i, one in enumerate(found, 1)]
        categories = [{'id': number, 'name': name} for number, name in enumerate(self.classes, 1)]
        document = {'images': images, 'annotations': annotations, 'categories': categories}
        return json.dumps(document, ensure_ascii=False, separators=(',', ':')).encode()

    def decode(self, content: bytes) -> tuple[list[str], dict[str, Any]]:
        document = json.loads(content)
        entries: dict[int, Any] = {image.pop('id'): (image, []) for image in document['images']}
        for one in document['annotations']:
            del one['id']
            entries[one.pop('image_id')][1].append(one)
        classes = [category['name'] for category in sorted(document['categories'], key=lambda entry: entry['id'])]
        return classes, {image['file_name']: (image, found) for image, found in entries.values()}


class CvatFile(AnnotationFile):
    """XML of "CVAT for images 1.1": a mask per class and image."""

    kind = 'cvat'

    def entry(self, name: str, labels: np.ndarray) -> Any:
        if re.search('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]', name):
            raise UserError(f'the name {name!r} has a character that XML cannot hold; rename the image')
        height, width = labels.shape
        image = ET.Element('image', {'name': name, 'width': str(width), 'height': str(height)})
        for label in np.unique(labels):
            mask = (labels == label).astype(np.uint8)
            left, top, across, down = cv2.boundingRect(mask)
            flat = mask[top : top + down, left : left + across].ravel()
            bounds = [0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1), flat.size]
            runs = ([0] if flat[0] else []) + np.diff(bounds).tolist()  # zeros and ones in turn, zeros first
            box = {'left': left, 'top': top, 'width': across, 'height': down}
            numbers = {'rle': ', '.join(map(str, runs)), **{key: str(value) for key, value in box.items()}}
            name = self.classes[label]
            ET.SubElement(image, 'mask', {'label': name, 'source': 'auto', 'occluded': '0', **numbers, 'z_order': '0'})
        return image

    def encode(self, entries: Mapping[str, Any]) -> bytes:
        root = ET.Element('annotations')
        ET.SubElement(root, 'version').text = '1.1'
        labels = ET.SubElement(ET.SubElement(ET.SubElement(root, 'meta'), 'task'), 'labels')
        for name, colour in zip(self.classes, self.palette, strict=True):
            label = ET.SubElement(labels, 'label')
            ET.SubElement(label, 'name').text = name
            ET.SubElement(label, 'color').text = '#{:02x}{:02x}{:02x}'.format(*colour)
        for number, image in enumerate(entries.values()):
            image.set('id', str(number))
            root.append(image)
        ET.indent(root, '')
        return ET.tostring(root, encoding='utf-8', xml_declaration=True)

    def decode(self, content: bytes) -> tuple[list[str], dict[str, Any]]:
        root = ET.fromstring(content)
        classes = [label.text or '' for label in root.iterfind('meta/task/labels/label/name')]
        return classes, {image.attrib['name']: image for image in root.iterfind('image')}


ANNOTATION_FILES: dict[str, type[AnnotationFile]] = {file.kind: file for file in (CocoFile, CvatFile)}
"""By kind of output."""


def coco_mask() -> Any:
    """The module ``pycocotools.mask``.

    Raises:
        UserError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError('the kind coco needs pycocotools: pip install "volo-seg[import]"') from error
    return mask


def annotated_names(folder: Path, kinds: Sequence[str]) -> set[str]:
    """The file names of the images that all annotation files of ``kinds`` have.

    Raises:
        UserError: A file cannot be read, or pycocotools is not installed.
    """
    if 'coco' in kinds:
        coco_mask()
    return set.intersection(*(set(ANNOTATION_FILES[kind](folder, (), np.empty((0, 3))).read()) for kind in kinds))
