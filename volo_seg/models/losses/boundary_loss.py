"""The boundary loss: probabilities weighted by their distance to the boundary of the labels."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from mmseg.registry import MODELS
from torch import Tensor

from volo_seg.models.losses.segmentation_loss import SegmentationLoss


@MODELS.register_module()
class DistanceBoundaryLoss(SegmentationLoss):
    """Boundary loss: the mean over labelled pixels of sum_c w_c p_c phi_c, with the softmax p of the logits.

    phi_c is the distance in pixels to the boundary of class c in the labels of the image, negative inside the class. It
    is 0 everywhere for a class that the image does not have, or if it has no other. Distances are measured between
    labelled pixels alone, so the edge of an ignored area is no boundary. A probability far from its region costs most;
    the loss may be negative. The paper adds it to a loss of regions with a small weight (0.01 at first).
    MMSegmentation's ``BoundaryLoss`` is another one, for heads that predict edges. Source: arXiv 1812.07032.

    Args:
        class_weight, loss_weight, loss_name: See :class:`.SegmentationLoss`.
    """

    def __init__(
        self,
        *,
        class_weight: Sequence[float] | str | None = None,
        loss_weight: float = 0.01,
        loss_name: str = 'loss_boundary',
    ) -> None:
        super().__init__(class_weight=class_weight, loss_weight=loss_weight, loss_name=loss_name)

    def loss(self, logits: Tensor, label: Tensor, pixels: Tensor, classes: Tensor) -> Tensor:
        maps = zip(label.cpu().numpy(), (pixels > 0).cpu().numpy(), strict=True)
        distances = np.stack([signed_distances(*one, classes=logits.shape[1]) for one in maps])
        phi = torch.from_numpy(distances).to(logits.device, logits.dtype)
        losses = torch.einsum('bchw,bchw,c->bhw', logits.softmax(1), phi, classes) * pixels
        return losses.sum() / pixels.count_nonzero().clamp_min(1)


def signed_distances(
    label: npt.NDArray[np.int64], labelled: npt.NDArray[np.bool_], *, classes: int
) -> npt.NDArray[np.float32]:
    """The maps phi (C, H, W) of ``label`` (H, W): Euclidean distances to the nearest pixel of the other side.

    Outside a class that is the nearest pixel of the class, inside it the nearest pixel of any other class where
    ``labelled``, less one pixel and negative, as in the authors' code.
    """
    phi = np.zeros((classes, *label.shape), np.float32)
    for c in np.unique(label[labelled]):
        inside = (label == c) & labelled
        outside = ~inside & labelled
        if outside.any():
            phi[c] = np.where(inside, 1 - _distance_to(outside), _distance_to(inside))
    return phi


def _distance_to(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """The distance of each pixel to the nearest one in ``mask``."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
