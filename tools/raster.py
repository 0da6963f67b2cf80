"""Run ``volo-seg raster``, with the same arguments."""

from volo_seg.commands import run_tool

if __name__ == '__main__':
    run_tool('raster')
