"""Segment images: the same as ``volo-seg infer``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('infer')
