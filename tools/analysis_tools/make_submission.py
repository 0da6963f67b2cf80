"""Pack or validate a benchmark submission: the same as ``volo-seg submit``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('submit')
