"""Write a page about a run: the same as ``volo-seg report``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('report')
