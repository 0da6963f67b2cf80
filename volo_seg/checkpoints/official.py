"""The released ImageNet weights by short name."""

from __future__ import annotations

from typing import NamedTuple

_RELEASE = 'https://github.com/sail-sg/volo/releases/download/volo_1/'
# VARIANT_RESOLUTION_ACCURACY, as the authors named them. Source: github.com/sail-sg/volo, release volo_1.
_FILES = (
    'd1_224_84.2',
    'd1_384_85.2',
    'd2_224_85.2',
    'd2_384_86.0',
    'd3_224_85.4',
    'd3_448_86.3',
    'd4_224_85.7',
    'd4_448_86.79',
    'd5_224_86.10',
    'd5_448_87.0',
    'd5_512_87.07',
)


class OfficialFile(NamedTuple):
    """One released file: its address, variant (``'d1'``), training side in pixels, and name on timm's hub."""

    url: str
    variant: str
    resolution: int
    timm: str


def _entry(file: str) -> tuple[str, OfficialFile]:
    variant, resolution, _ = file.split('_')
    name = f'volo_{variant}_{resolution}'
    return name, OfficialFile(f'{_RELEASE}{file}.pth.tar', variant, int(resolution), f'timm/{name}.sail_in1k')


OFFICIAL: dict[str, OfficialFile] = dict(map(_entry, _FILES))
"""Short name (``volo_d1_224``) -> the file it stands for."""
