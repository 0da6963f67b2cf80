"""Plot the logs of runs: the same as ``volo-seg analyze_logs``."""

from volo_seg.commands import door

if __name__ == '__main__':
    door('analyze_logs')
