"""Segment an image of any size: the same as ``volo-seg raster``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('raster')
