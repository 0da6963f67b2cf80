"""Small images and videos, written for tests."""

import cv2
import numpy as np


def pictures(folder, *names, size=(20, 30)):
    """Write an image of coloured blocks for each name below ``folder``; return ``folder``."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
        cv2.imwrite(str(path), cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_NEAREST))
    return folder


def film(path, frames=6, size=(40, 60)):
    """Write a video whose frames get brighter by 40 each, modulo 256; return ``path``."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), 10, size[::-1])
    for index in range(frames):
        writer.write(np.full((*size, 3), index * 40 % 256, np.uint8))
    writer.release()
    return path
