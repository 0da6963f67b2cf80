"""``python -m volo_seg COMMAND [arguments]``"""

import sys

from volo_seg.commands import main

if __name__ == '__main__':
    sys.exit(main())
