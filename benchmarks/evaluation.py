"""Exact metric against MMSegmentation's IoUMetric on label maps of 1024x2048, 19 and 150 classes."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _measure import Report, parser, settings
from PIL import Image
from torch import Tensor

HEIGHT, WIDTH = 1024, 2048
IMAGES = 4


def label_maps(classes: int, *, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """A ground truth of smooth regions with a share of ignored pixels, and a prediction off at the contours."""
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, classes, (32, 64)).astype(np.uint8)
    truth = cv2.medianBlur(cv2.resize(seeds, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST), 31)
    prediction = np.roll(truth, (3, 5), (0, 1))
    truth = np.where(rng.random((HEIGHT, 1)) < 0.05, 255, truth)
    return tuple(torch.from_numpy(labels.astype(np.int64)).to(device)[None] for labels in (truth, prediction))


def samples(classes: int, device: str) -> list[dict[str, Any]]:
    """What both metrics get: int64 maps on the device, as the model and the data preprocessor leave them."""
    found = []
    for i in range(IMAGES):
        truth, prediction = label_maps(classes, seed=i, device=device)
        found.append({'img_path': f'{i}.png', 'gt_sem_seg': {'data': truth}, 'pred_sem_seg': {'data': prediction}})
    return found


def metrics(classes: int) -> dict[str, Any]:
    """Both metrics, silent, with the same classes."""
    from mmengine.logging import MMLogger
    from mmseg.evaluation.metrics import IoUMetric

    from volo_seg.evaluation import ExactIoUMetric

    MMLogger.get_instance('benchmark', log_level='CRITICAL')
    peers = {'mmseg IoUMetric': IoUMetric(prefix='m'), 'ExactIoUMetric': ExactIoUMetric(prefix='m')}
    for peer in peers.values():
        peer.dataset_meta = {'classes': [f'class {i}' for i in range(classes)]}
    return peers


def exact_miou(found: Sequence[dict[str, Any]], classes: int) -> float:
    """Percent, from counts in whole numbers, class by class."""
    shares = []
    for c in range(classes):
        both = either = 0
        for one in found:
            kept = one['gt_sem_seg']['data'] != 255
            truth = (one['gt_sem_seg']['data'] == c) & kept
            prediction = (one['pred_sem_seg']['data'] == c) & kept
            both += int((truth & prediction).sum())
            either += int((truth | prediction).sum())
        shares += [both / either] if either else []
    return 100 * sum(shares) / len(shares)


def whole(metric: Any, batches: Callable[[], Iterator[Sequence[dict[str, Any]]]]) -> Callable[[], float]:
    """One evaluation from the first image to the scores."""

    def run() -> float:
        count = 0
        for batch in batches():
            metric.process({}, batch)
            count += len(batch)
        return float(metric.evaluate(count)['m/mIoU'])

    return run


def one_image(metric: Any, sample: dict[str, Any]) -> Callable[[], None]:
    """The counting of one image alone."""

    def run() -> None:
        metric.process({}, [sample])
        metric.results.clear()

    return run


@contextmanager
def loader(classes: int) -> Iterator[Callable[[], Iterator[list[dict[str, Any]]]]]:
    """MMSegmentation's loading of label PNGs; the decoded map, shifted, stands for the network's prediction."""
    from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs

    load, pack = LoadAnnotations(), PackSegInputs(meta_keys=('seg_map_path',))
    with tempfile.TemporaryDirectory() as folder:
        for i in range(IMAGES):
            truth, _ = label_maps(classes, seed=i, device='cpu')
            Image.fromarray(truth[0].numpy().astype(np.uint8)).save(Path(folder, f'{i}.png'))

        def batches() -> Iterator[list[dict[str, Any]]]:
            for path in sorted(Path(folder).iterdir()):
                raw = {'seg_map_path': str(path), 'reduce_zero_label': False, 'seg_fields': []}
                found = pack(load(raw))['data_samples'].to_dict()
                data = found['gt_sem_seg']['data']
                prediction = data.roll(5, -1)
                found['pred_sem_seg'] = {'data': prediction.where(prediction < classes, 0)}
                yield [found]

        yield batches


def main() -> None:
    """Print the tables."""
    flags = settings(parser(__doc__).parse_args())
    report = Report('Evaluation on label maps of 1024x2048', flags)
    for classes in (19, 150):
        found = samples(classes, flags.device)
        expected = exact_miou(found, classes)
        peers = metrics(classes)
        report.compare(
            f'{classes} classes, one image counted',
            {name: one_image(peer, found[0]) for name, peer in peers.items()},
        )
        peers = metrics(classes)
        runs = {name: whole(peer, lambda found=found: ([one] for one in found)) for name, peer in peers.items()}
        errors = {name: abs(run() - expected) for name, run in runs.items()}
        report.compare(f'{classes} classes, {IMAGES} images to scores', runs, errors=errors)
        if flags.device == 'cpu':
            with loader(classes) as batches:
                runs = {name: whole(peer, batches) for name, peer in metrics(classes).items()}
                report.compare(f'{classes} classes, {IMAGES} label PNGs: decode, count, scores', runs)
    report.remark('error: distance of the mIoU (percent) from counts in whole numbers; mmseg rounds to 0.01')
    report.finish()


if __name__ == '__main__':
    main()
