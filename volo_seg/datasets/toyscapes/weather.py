"""What light and weather do to a whole painted picture: cast shadows of things out of sight, a wet ground, glare."""

from __future__ import annotations

import cv2
import numpy as np

from volo_seg.datasets.toyscapes.camera import Array
from volo_seg.datasets.toyscapes.materials import TILE, tile
from volo_seg.datasets.toyscapes.sketch import View


def weather(picture: Array, sky: Array, ground: Array, view: View, rng: np.random.Generator) -> None:
    """Change the picture (H, W, 3) uint8 in place; ``sky`` and ``ground`` (H, W) bool."""
    if view.light.wet:
        _mirror(picture, ground, view, rng)
    if rng.random() < 0.1 + 0.4 * (view.light.sun_share > 0.3):
        _cast(picture, sky, rng)
    if rng.random() < 0.1:
        _glare(picture, rng)
    if rng.random() < 0.2:
        _wires(picture, rng)


def _noise(shape: tuple[int, ...], texels: float, rng: np.random.Generator) -> Array:
    """Return a piece of the cloud tile stretched over the picture, float32 (H, W)."""
    rows, columns = ((np.arange(side) * texels).astype(int) + int(rng.integers(TILE)) for side in shape[:2])
    return tile('cloud')[(rows & (TILE - 1))[:, None], (columns & (TILE - 1))[None]]


def _mirror(picture: Array, ground: Array, view: View, rng: np.random.Generator) -> None:
    """Let the ground mirror what stands above the horizon, in streaks and puddles."""
    height, width = picture.shape[:2]
    horizon = int(np.clip(view.camera.matrix[1, 2] / view.camera.matrix[2, 2], 1, height - 2))
    rows = np.clip(2 * horizon - np.arange(height), 0, height - 1)
    mirrored = cv2.blur(picture[rows], (3, 2 * (height // 40) + 3)).astype(np.float32)
    share = np.clip(0.6 + 0.5 * _noise((height, width), 60 / height, rng), 0, 1) * np.float32(view.light.wet)
    share = (share * ground)[..., None]
    picture[:] = picture * (1 - share) * np.float32(0.85) + mirrored * share + picture * share * np.float32(0.2)


def _cast(picture: Array, sky: Array, rng: np.random.Generator) -> None:
    """Darken part of the street in the shadow of a house (a half plane) or dappled, of trees."""
    height, width = picture.shape[:2]
    if rng.random() < 0.5:
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.35, 0.35)
        across = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None] * np.float32(np.cos(angle))
        field = across + np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle)) - offset
        field = field * np.float32(height / 3) + _noise((height, width), 256 / width, rng) * np.float32(
            rng.uniform(0, 6)
        )
    else:
        field = _noise((height, width), float(rng.uniform(60, 400)) / height, rng) * np.float32(3) + rng.normal(0, 1)
    shade = np.clip(field + 0.5, 0, 1) * np.float32(rng.uniform(0.2, 0.6)) * ~sky
    picture[:] = np.clip(picture * (1 - shade[..., None]), 0, 255)


def _glare(picture: Array, rng: np.random.Generator) -> None:
    """Brighten the picture around a point, as the sun or a lamp in the lens does."""
    height, width = picture.shape[:2]
    u, v = rng.uniform(0, width), rng.uniform(0, 0.5 * height)
    distance = np.hypot(np.arange(width)[None] - u, np.arange(height)[:, None] - v) / height
    veil = rng.uniform(40, 160) * np.exp(-distance * rng.uniform(2, 6))
    picture[:] = np.clip(picture + veil[..., None], 0, 255)


def _wires(picture: Array, rng: np.random.Generator) -> None:
    """Draw cables across the upper part; they belong to what is behind them."""
    height, width = picture.shape[:2]
    x = np.linspace(0, 1, 12)
    for _ in range(int(rng.integers(1, 6))):
        left, right, sag = rng.uniform(-0.2, 0.45, 2).tolist() + [rng.uniform(0, 0.1)]
        y = left + (right - left) * x + sag * 4 * x * (1 - x)
        line = np.round(np.stack([x * width, y * height], axis=1) * 16).astype(np.int32)
        cv2.polylines(picture, [line], False, (45, 45, 45), max(1, height // 400), cv2.LINE_AA, 4)
