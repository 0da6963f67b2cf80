"""Print the config that training runs with: the same as ``volo-seg print_config``."""

from volo_seg.commands import run_tool

if __name__ == '__main__':
    run_tool('print_config')
