"""Export a checkpoint as ONNX: the same as ``volo-seg export``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('export')
