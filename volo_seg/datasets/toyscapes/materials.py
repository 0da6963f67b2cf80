"""Colours (BGR, 0 to 255) and noise textures of the objects. No colour belongs to one class only."""

from __future__ import annotations

from functools import cache

import numpy as np

from volo_seg.datasets.toyscapes.camera import Array

TILE = 256
# exponent of the power law, lowest and highest frequency in cycles per tile
_BANDS = {'grain': (0.0, 20.0, 90.0), 'blotch': (1.7, 2.0, 90.0), 'leaf': (0.8, 8.0, 70.0), 'cloud': (2.2, 1.0, 60.0)}
Palette = tuple[tuple[int, int, int], ...]

ASPHALT: Palette = ((98, 92, 88), (84, 80, 77), (110, 103, 98))
SLABS: Palette = ((132, 150, 182), (150, 166, 194), (122, 140, 176), (160, 170, 186))
GRASS: Palette = ((62, 152, 120), (68, 162, 150), (58, 136, 104))
GRAVEL: Palette = ((95, 105, 115), (118, 124, 130))
LEAVES: Palette = ((50, 98, 62), (42, 84, 48), (58, 112, 76), (48, 94, 66), (52, 104, 88), (52, 100, 146))
FRONTS: Palette = (
    (150, 172, 188), (92, 112, 162), (178, 196, 208), (130, 152, 164), (106, 138, 184), (122, 124, 130), (84, 92, 112),
)  # fmt: skip
SHOPS: Palette = ((70, 60, 120), (110, 80, 50), (60, 60, 60), (90, 130, 90))
PANES: Palette = ((88, 76, 64), (98, 86, 76))
CURTAINS: Palette = ((150, 125, 100),)  # windows of glass fronts
WALLS: Palette = ((178, 160, 148), (192, 180, 170), (160, 148, 146), (104, 126, 160))
BARS: Palette = ((72, 96, 54), (104, 158, 196), (212, 212, 206))  # by kind of fence
STEEL: Palette = ((118, 120, 120), (92, 95, 97), (74, 86, 76), (150, 150, 148))
CARS: Palette = (
    (50, 48, 48), (208, 208, 210), (152, 152, 154), (92, 90, 88), (42, 42, 172), (156, 84, 36), (76, 104, 66),
    (60, 60, 62),
)  # fmt: skip
LOADS: Palette = ((228, 228, 224), (218, 220, 222), (56, 138, 236), (148, 92, 40), (206, 206, 200))
BUSES: Palette = ((38, 196, 236), (42, 50, 204), (44, 160, 240), (40, 186, 228))
TRAMS: Palette = ((128, 132, 30), (96, 150, 44), (150, 146, 60), (206, 214, 210))
CLOTHES: Palette = (
    (64, 48, 42), (42, 40, 46), (150, 86, 52), (52, 54, 184), (196, 196, 200), (120, 70, 130), (58, 146, 208),
    (82, 80, 84),
)  # fmt: skip
TROUSERS: Palette = ((64, 48, 42), (42, 40, 46), (110, 78, 58), (82, 80, 84))
JACKETS: Palette = ((40, 228, 214), (32, 132, 248), (40, 228, 214), (62, 52, 216), (70, 66, 70))  # of riders
SKINS: Palette = ((135, 165, 215), (90, 125, 180), (55, 75, 115))
HAIR: Palette = ((45, 55, 70), (30, 32, 36), (70, 110, 150))
BARK: Palette = ((62, 72, 85),)
LITTER: Palette = ((70, 80, 75), (96, 92, 88))
WOODS: Palette = ((70, 105, 75),)
ROOFS: Palette = ((120, 130, 140),)


def jitter(rng: np.random.Generator, colour: tuple[float, float, float] | Array, spread: float) -> Array:
    """Return a BGR colour near ``colour``: brightness and, less, hue vary by ``spread`` levels."""
    moved = np.asarray(colour, np.float64) + rng.normal(0, spread) + rng.normal(0, spread * 0.35, 3)
    return np.clip(moved, 4, 250)


def pick(rng: np.random.Generator, palette: Palette, spread: float) -> Array:
    """Return one colour of ``palette``, (3,), moved by about ``spread`` levels."""
    return jitter(rng, palette[rng.integers(len(palette))], spread)


@cache
def tile(kind: str) -> Array:
    """The seamless noise tile ``kind`` (grain, blotch, leaf, cloud): (256, 256) float32, mean 0, variance 1."""
    slope, low, high = _BANDS[kind]
    rng = np.random.default_rng(sum(map(ord, kind)))
    spectrum = np.fft.fft2(rng.standard_normal((TILE, TILE)))
    frequency = np.fft.fftfreq(TILE) * TILE
    radius = np.hypot(frequency[:, None], frequency[None])
    spectrum *= np.where((radius >= low) & (radius <= high), np.maximum(radius, 1.0) ** -slope, 0.0)
    noise = np.fft.ifft2(spectrum).real
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def lookup(kind: str, s: Array, t: Array, texels: float, shift: tuple[int, int] = (0, 0)) -> Array:
    """Sample a tile at plane coordinates ``s``, ``t`` in metres, ``texels`` per metre; float32, the shape of ``s``."""
    column = (s * np.float32(texels)).astype(np.int32) + shift[0]
    row = (t * np.float32(texels)).astype(np.int32) + shift[1]
    return tile(kind)[row & (TILE - 1), column & (TILE - 1)]


def vary(image: Array, rng: np.random.Generator, ambient: Array, *, fixed: bool = False) -> None:
    """Give a painted thing, (h, w, 3) uint8 BGR, a random tint and a 1/f texture in a dim light, in place.

    ``ambient``: BGR factors of the light; ``fixed``: the thing keeps its tint but for its brightness.
    """
    height, width = image.shape[:2]
    gain = np.exp(rng.normal(0, 0.1 if fixed else 0.22)) * ambient
    if not fixed:
        gain = gain * np.exp(rng.normal(0, 0.04, 3))
    colour = np.eye(3)
    if not fixed and rng.random() < 0.4:  # towards grey, or more colourful
        share = float(rng.uniform(0.2, 1.3))
        colour = share * colour + (1 - share) / 3
    picture = image.astype(np.float32) @ (colour * gain).astype(np.float32)
    # smooth kinds only: fine speckle stays a mark of leaves
    kind, texels = ('blotch', 'cloud')[rng.integers(2)], float(np.exp(rng.uniform(-1.6, 0.5)))
    rows = (np.arange(height) * texels).astype(int) + int(rng.integers(TILE))
    columns = (np.arange(width) * texels).astype(int) + int(rng.integers(TILE))
    noise = tile(kind)[(rows & (TILE - 1))[:, None], (columns & (TILE - 1))[None]]
    picture *= (1 + float(rng.exponential(0.04)) * noise)[..., None]
    image[:] = np.clip(picture, 0, 255)
