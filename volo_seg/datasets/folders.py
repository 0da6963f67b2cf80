"""A data set that is two folders and a list of class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from volo_seg.errors import UserError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


@DATASETS.register_module()
class FolderDataset(BaseSegDataset):
    """Pairs of images and label masks with equal relative names, in two folders.

    Args:
        data_root: Folder that the other paths start from.
        data_prefix: ``img_path`` and ``seg_map_path``, folders below ``data_root``.
        classes: Class names in the order of their label values, or a file with one name a line; without it,
            ``<data_root>/classes.txt`` is read.
        palette: One RGB colour (0..255) a class; without it, fixed distinct colours.
        ignore_labels: Label values of the masks that are neither trained nor evaluated, besides ``ignore_index``.
        img_suffix: Endings of images, any case.
        seg_map_suffix: Ending of masks.
        ignore_index: Label value that is ignored.
        reduce_zero_label: Whether label 0 is ignored and all others count from 1.
        pipeline, test_mode, lazy_init, indices, serialize_data, max_refetch, backend_args: As in MMSegmentation.

    Masks hold one label value a pixel: 8-bit grey or palette images.

    Raises:
        UserError: No class names, two images of one name, or an image without its mask.
    """

    def __init__(
        self,
        *,
        data_root: str,
        data_prefix: Mapping[str, str],
        classes: Sequence[str] | str | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_labels: Sequence[int] = (),
        img_suffix: str | Sequence[str] = IMAGE_SUFFIXES,
        seg_map_suffix: str = '.png',
        ignore_index: int = 255,
        reduce_zero_label: bool = False,
        pipeline: Sequence[Any] = (),
        test_mode: bool = False,
        lazy_init: bool = False,
        indices: int | Sequence[int] | None = None,
        serialize_data: bool = True,
        max_refetch: int = 1000,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        names = read_classes(classes, data_root)
        self.ignore_labels = tuple(ignore_labels)
        colours = [list(colour) for colour in palette or distinct_colours(len(names))]
        if len(colours) != len(names):
            raise UserError(f'palette has {len(colours)} colours for {len(names)} classes; give one a class')
        super().__init__(
            metainfo=dict(classes=names, palette=colours),
            data_root=data_root,
            data_prefix=dict(data_prefix),
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            ignore_index=ignore_index,
            reduce_zero_label=reduce_zero_label,
            pipeline=list(pipeline),
            test_mode=test_mode,
            lazy_init=lazy_init,
            indices=indices,
            serialize_data=serialize_data,
            max_refetch=max_refetch,
            backend_args=backend_args,
        )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Pair every image with its mask by the name without suffix, sorted."""
        image_dir = Path(self.data_prefix['img_path'])
        mask_dir = self.data_prefix.get('seg_map_path')
        suffixes = (self.img_suffix,) if isinstance(self.img_suffix, str) else tuple(self.img_suffix)
        label_map = dict.fromkeys(self.ignore_labels, self.ignore_index) or None
        pairs: dict[Path, dict[str, Any]] = {}
        for image in sorted(path for path in image_dir.rglob('*') if path.name.lower().endswith(suffixes)):
            name = image.relative_to(image_dir).with_suffix('')
            if name in pairs:
                raise UserError(
                    f'{str(image)!r} and {pairs[name]["img_path"]!r} share a name and would share a mask; rename one'
                )
            pairs[name] = dict(
                img_path=str(image), label_map=label_map, reduce_zero_label=self.reduce_zero_label, seg_fields=[]
            )
            if mask_dir:
                pairs[name]['seg_map_path'] = str(find_mask(Path(mask_dir, name), self.seg_map_suffix, image))
        return list(pairs.values())


def find_mask(stem: Path, suffix: str, image: Path) -> Path:
    """The mask of ``image``: ``stem`` plus ``suffix``.

    Raises:
        UserError: There is no such file.
    """
    mask = stem.with_name(stem.name + suffix)
    if not mask.is_file():
        raise UserError(f'image {str(image)!r} has no mask {str(mask)!r}; add it, or move the image away')
    return mask


def read_classes(classes: Sequence[str] | str | None, data_root: str) -> list[str]:
    """Class names from a list, from a file with one a line, or from ``<data_root>/classes.txt``.

    Raises:
        UserError: Nothing of that is there, or a name stands twice.
    """
    if classes is None or isinstance(classes, str):
        path = Path(classes) if classes else Path(data_root, 'classes.txt')
        if not path.is_file():
            raise UserError(f'class names are missing: write one a line into {str(path)!r}, or give classes=[…]')
        classes = [line.strip() for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
    names = [str(name) for name in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        problem = f'names {twice[0]!r} twice' if twice else 'is empty'
        raise UserError(f'classes={names} {problem}; give each class one name')
    return names


def distinct_colours(count: int) -> list[list[int]]:
    """``count`` RGB colours, always the same: the bits of the index spread over the channels, as in PASCAL VOC."""
    colours = []
    for index in range(1, count + 1):
        red = green = blue = 0
        for bit in range(8):
            red |= (index >> (3 * bit) & 1) << (7 - bit)
            green |= (index >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (index >> (3 * bit + 2) & 1) << (7 - bit)
        colours.append([red, green, blue])
    return colours
