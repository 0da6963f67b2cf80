"""Label maps as polygons, from which rasterization restores every label.

Pixel (x, y) is the square from (x, y) to (x + 1, y + 1). Polygons follow the edges of the pixels, with integer
coordinates (x to the right, y down). A pixel belongs to the polygon that contains its centre (x + 0.5, y + 0.5), which
is the default of ``rasterio.features.rasterize``. A region, one polygon, consists of pixels of one class that are
connected by their sides. Regions do not overlap and leave no gaps, and their rings do not touch themselves.

Painting only the outer rings in the order of :func:`regions` restores the labels too: regions in a hole are later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Ring = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Region:
    """Pixels of one class, connected by their sides.

    Attributes:
        label: The class number.
        pixels: Number of pixels.
        rings: The outer ring, then one per hole: (n, 2) int32 corners (x, y) in pixels; the last equals the first.
            The signed area of the outer ring is positive in (x, y), that of a hole negative.
    """

    label: int
    pixels: int
    rings: tuple[Ring, ...]


def regions(labels: np.ndarray) -> list[Region]:
    """All regions of a label map (H, W), largest outer ring first."""
    found = []
    for label in np.unique(labels):
        mask = (labels == label).astype(np.uint8)
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        for number in range(1, count):
            x, y, width, height, pixels = (int(value) for value in boxes[number])
            part = (numbers[y : y + height, x : x + width] == number).astype(np.uint8)
            found.append(Region(int(label), pixels, trace(part, corner=(x, y))))
    return sorted(found, key=lambda region: -signed_area(region.rings[0]))


def trace(mask: np.ndarray, *, corner: tuple[int, int] = (0, 0)) -> tuple[Ring, ...]:
    """The rings of one region: ``mask`` (H, W) uint8 of 0 and 1, with its upper left corner at ``corner`` (x, y).

    OpenCV's contours connect the centres of border pixels. At twice the size they are half a pixel from the edge, on
    either side, so that rounding up gives the edge, for outer rings and for holes.
    """
    doubled = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    is_hole = tree[0][:, 3] >= 0
    rings = []
    for index in np.argsort(is_hole, kind='stable'):
        ring = corners((contours[index][:, 0, :] + 1) // 2) + np.array(corner, dtype=np.int32)
        wrong_way = (signed_area(ring) < 0) != is_hole[index]
        rings.append(ring[::-1] if wrong_way else ring)
    return tuple(rings)


def corners(path: np.ndarray) -> Ring:
    """The corners of a closed ``path`` (n, 2) parallel to the axes; the first is repeated at the end."""
    path = path[np.any(path != np.roll(path, 1, axis=0), axis=1)]
    before, after = path - np.roll(path, 1, axis=0), np.roll(path, -1, axis=0) - path
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    kept = path[turns]
    return np.concatenate([kept, kept[:1]]).astype(np.int32)


def signed_area(ring: Ring) -> float:
    """Area of a closed ring in pixels, positive if it runs from the x axis to the y axis."""
    x, y = ring[:, 0].astype(np.float64), ring[:, 1].astype(np.float64)
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def geojson(labels: np.ndarray, classes: Sequence[str], palette: np.ndarray) -> dict[str, object]:
    """The regions as a GeoJSON FeatureCollection in pixels: one Polygon with holes per region."""
    features = []
    for region in regions(labels):
        properties = {'class': classes[region.label], 'id': region.label, 'pixels': region.pixels}
        properties['colour'] = '#{:02x}{:02x}{:02x}'.format(*palette[region.label])
        geometry = {'type': 'Polygon', 'coordinates': [ring.tolist() for ring in region.rings]}
        features.append({'type': 'Feature', 'properties': properties, 'geometry': geometry})
    height, width = labels.shape
    return {'type': 'FeatureCollection', 'width': width, 'height': height, 'features': features}


def labelme(labels: np.ndarray, classes: Sequence[str], *, image_path: str) -> dict[str, object]:
    """The regions as a labelme document, which has no holes; later shapes are painted over earlier ones.

    labelme fills a polygon together with its outline, so that the corners are border pixels of the region.
    """
    shapes = [
        {
            'label': classes[region.label],
            'points': border(region.rings[0]).tolist(),
            'group_id': None,
            'description': '',
            'shape_type': 'polygon',
            'flags': {},
        }
        for region in regions(labels)
    ]
    height, width = labels.shape
    document: dict[str, object] = {'version': '5.5.0', 'flags': {}, 'shapes': shapes}
    return {**document, 'imagePath': image_path, 'imageData': None, 'imageHeight': height, 'imageWidth': width}


def border(ring: Ring) -> Ring:
    """The pixels (n, 2) along the inner side of an outer ring: of each edge the first and the last; at least three."""
    along = np.sign(np.diff(ring, axis=0))
    inwards = np.stack([-along[:, 1], along[:, 0]], axis=1)
    ends = np.stack([ring[:-1] + (inwards + along - 1) // 2, ring[1:] + (inwards - along - 1) // 2], axis=1)
    path = ends.reshape(-1, 2)
    path = path[np.any(path != np.roll(path, 1, axis=0), axis=1)]
    return path if len(path) > 2 else ends.reshape(-1, 2)
