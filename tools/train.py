"""Train a segmentor: the same as ``volo-seg train``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('train')
