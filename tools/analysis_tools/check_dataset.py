"""Check the data of a config before training: the same as ``volo-seg check``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('check')
