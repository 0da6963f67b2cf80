"""Run ``volo-seg import --format coco``, with the same arguments."""

import sys

from volo_seg.commands import run_tool

if __name__ == '__main__':
    run_tool('import', ['--format', 'coco', *sys.argv[1:]])
