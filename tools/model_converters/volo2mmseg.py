"""Turn official or timm weights, or a trained segmentor, into a file of the backbone alone."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('volo2mmseg')
