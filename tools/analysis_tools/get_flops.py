"""Count parameters and operations: the same as ``volo-seg flops``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('flops')
