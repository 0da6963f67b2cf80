"""Measure latency, throughput and memory by stage: the same as ``volo-seg benchmark``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('benchmark')
