"""Write Cityscapes' labelTrainIds: the same as ``volo-seg cityscapes``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('cityscapes')
