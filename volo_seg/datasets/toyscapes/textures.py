"""Repeating noise tiles, made once a process from a fixed seed, and how to look them up."""

from __future__ import annotations

from functools import cache

import numpy as np

from volo_seg.datasets.toyscapes.camera import Array

TILE = 256
# exponent of the falling spectrum, lowest and highest frequency in cycles a tile
_BANDS = {
    'grain': (0.0, 20.0, 90.0),
    'blotch': (1.7, 2.0, 90.0),
    'leaf': (0.8, 8.0, 70.0),
    'cloud': (2.2, 1.0, 60.0),
}


@cache
def tile(kind: str) -> Array:
    """Return the seamless (256, 256) float32 tile ``kind`` (grain, blotch, leaf, cloud): mean 0, variance 1."""
    slope, low, high = _BANDS[kind]
    rng = np.random.default_rng(sum(map(ord, kind)))
    spectrum = np.fft.fft2(rng.standard_normal((TILE, TILE)))
    frequency = np.fft.fftfreq(TILE) * TILE
    radius = np.hypot(frequency[:, None], frequency[None])
    spectrum *= np.where((radius >= low) & (radius <= high), np.maximum(radius, 1.0) ** -slope, 0.0)
    noise = np.fft.ifft2(spectrum).real
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def lookup(kind: str, s: Array, t: Array, texels: float, shift: tuple[int, int] = (0, 0)) -> Array:
    """Sample a tile at plane coordinates ``s``, ``t`` in metres, ``texels`` a metre; float32, shape kept."""
    column = (s * np.float32(texels)).astype(np.int32) + shift[0]
    row = (t * np.float32(texels)).astype(np.int32) + shift[1]
    return tile(kind)[row & (TILE - 1), column & (TILE - 1)]
