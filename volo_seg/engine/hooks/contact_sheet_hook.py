"""Contact sheets of the same validation images after each validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmseg.registry import HOOKS

from volo_seg.errors import UserError
from volo_seg.io import atomic_write
from volo_seg.visualization import SheetRow, draw_sheet, image_of_batch, make_row

FOLDER = 'val_sheets'


@HOOKS.register_module()
class ContactSheetHook(Hook):
    """Draws image, prediction and ground truth of ``count`` validation images into ``<log folder>/val_sheets/``.

    The predictions are those of the validation. The images are spread evenly over the data set and are the same in each
    validation, for any number of processes.

    Args:
        count: Number of images; 0 disables the hook.
    """

    priority = 'LOW'

    def __init__(self, *, count: int = 6) -> None:
        self.count = count
        self._wanted: dict[str, int] = {}
        self._rows: dict[str, SheetRow] = {}

    def before_val_epoch(self, runner: Any) -> None:
        """Choose the images before the first validation."""
        self._rows = {}
        if not self._wanted and self.count > 0:
            self._wanted = evenly_spread(runner.val_dataloader.dataset, self.count)

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep a small copy of each wanted image of the batch."""
        for index, sample in enumerate(outputs or ()):
            path = str(getattr(sample, 'img_path', ''))
            if path in self._wanted and path not in self._rows and 'pred_sem_seg' in sample and 'gt_sem_seg' in sample:
                prediction, truth = (getattr(sample, key).data[0] for key in ('pred_sem_seg', 'gt_sem_seg'))
                if prediction.shape == truth.shape:
                    image = image_of_batch(data_batch, index)
                    self._rows[path] = make_row(Path(path).name, image=image, labels=(prediction, truth))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Gather the images of all processes and draw them."""
        rows: dict[str, SheetRow] = {}
        for part in all_gather_object(self._rows):
            rows.update(part)
        self._rows = {}
        if not rows or not is_main_process():
            return
        chosen = [rows[path] for path in sorted(rows, key=self._wanted.__getitem__)]
        iteration = 0 if runner._train_loop is None or isinstance(runner._train_loop, dict) else runner.iter
        score = f'   mIoU {metrics["mIoU"]:.2f}' if metrics and 'mIoU' in metrics else ''
        meta = runner.val_dataloader.dataset.metainfo
        title = f'iteration {iteration}{score}'
        sheet = draw_sheet(chosen, title=title, classes=meta.get('classes') or (), palette=meta.get('palette'))
        path = Path(runner.log_dir, FOLDER, f'iter_{iteration}.jpg')
        try:
            atomic_write(path, sheet)
        except UserError as error:  # a missing sheet does not end training
            runner.logger.warning(str(error))


def evenly_spread(dataset: Any, count: int) -> dict[str, int]:
    """Return paths and indices of ``count`` evenly spread images of ``dataset``; empty if it has no paths."""
    if not hasattr(dataset, 'get_data_info'):
        return {}
    size = len(dataset)
    count = min(count, size)
    indices = sorted({round(index * (size - 1) / max(1, count - 1)) for index in range(count)})
    paths = [(dataset.get_data_info(index).get('img_path'), index) for index in indices]
    return {str(path): index for path, index in paths if path}
