"""Score label images of any model: the same as ``volo-seg eval``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('eval')
