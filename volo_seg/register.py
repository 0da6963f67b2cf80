"""Importing this module registers all types of this package with MMSegmentation.

A config names it in ``custom_imports``, for MMSegmentation's own tools; the tools of this package import it before they
read a config. The visualization backends are not imported here: a config names them by their full path.
"""

from volo_seg.compat import import_mmseg

import_mmseg()

import volo_seg.datasets.folder_dataset  # noqa: E402
import volo_seg.datasets.rare_class_datasets  # noqa: E402
import volo_seg.datasets.samplers  # noqa: E402
import volo_seg.datasets.transforms  # noqa: E402
import volo_seg.engine.hooks  # noqa: E402
import volo_seg.engine.optim  # noqa: E402
import volo_seg.engine.runner  # noqa: E402
import volo_seg.evaluation  # noqa: E402
import volo_seg.models  # noqa: E402, F401
