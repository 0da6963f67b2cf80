"""Generate the Toyscapes data set: the same as ``volo-seg toyscapes``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('toyscapes')
