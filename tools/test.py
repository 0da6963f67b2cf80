"""Evaluate a checkpoint: the same as ``volo-seg test``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('test')
