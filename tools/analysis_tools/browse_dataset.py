"""Draw augmented samples with their labels, and how often each class occurs: the same as ``volo-seg browse``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('browse')
