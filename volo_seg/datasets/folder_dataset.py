"""A data set of two folders, with images and masks, and a list of class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS

from volo_seg.datasets.class_lists import read_classes
from volo_seg.datasets.masks import Colour, ColourTable
from volo_seg.datasets.pairs import Pairing, pair_folders, suffix_hint
from volo_seg.errors import UserError
from volo_seg.imageio import SUFFIXES
from volo_seg.visualization import default_palette


@DATASETS.register_module()
class FolderDataset(BaseSegDataset):
    """Pairs of images and label masks with equal relative names, in two folders.

    Args:
        data_root: Folder that the other paths start from.
        data_prefix: ``img_path`` and ``seg_map_path``, folders below ``data_root``.
        classes: Class names in the order of their label values, or a file of them (see :func:`.read_class_list`); by
            default ``<data_root>/classes.txt``. A file with colours also gives ``colours``.
        palette: An RGB colour (0..255) per class for drawing; by default ``colours``, or fixed distinct colours.
        colours: The RGB colour (0..255) of each class in colour-coded masks. With it, all masks are read by colour.
        ignore_colours: Colours of such masks that are neither trained nor evaluated.
        ignore_labels: Label values of the masks that are neither trained nor evaluated, besides ``ignore_index``.
        label_map: Label value of the masks -> class, for values that differ, e.g. ``{255: 1}`` for binary masks.
        img_suffix: Suffixes of images, in any case.
        seg_map_suffix: Suffix of masks.
        ignore_index: Label value that is ignored.
        reduce_zero_label: Whether label 0 is ignored and all others count from 1.
        pipeline, test_mode, lazy_init, indices, serialize_data, max_refetch, backend_args: As in MMSegmentation.

    Masks are 8-bit grey or palette images of label values, or images of the colours in ``colours``.

    Raises:
        UserError: There are no class names, colours do not match them, two images have one name, or a mask is missing.
    """

    def __init__(
        self,
        *,
        data_root: str,
        data_prefix: Mapping[str, str],
        classes: Sequence[str] | str | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        colours: Sequence[Sequence[int]] | None = None,
        ignore_colours: Sequence[Sequence[int]] = (),
        ignore_labels: Sequence[int] = (),
        label_map: Mapping[int, int] | None = None,
        img_suffix: str | Sequence[str] = SUFFIXES,
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
        names, listed_colours = read_classes(classes, data_root)
        colours = colours or listed_colours
        self.table = colour_table(names, colours, ignore_colours, ignore_index) if colours else None
        if self.table and reduce_zero_label:
            raise UserError('reduce_zero_label=True has no meaning for masks read by colour; use ignore_colours=[…]')
        palette = [list(colour) for colour in palette or colours or default_palette(len(names), first=1).tolist()]
        if len(palette) != len(names):
            raise UserError(f'palette has {len(palette)} colours for {len(names)} classes; give one per class')
        super().__init__(
            metainfo=dict(classes=names, palette=palette),
            data_root=data_root,
            data_prefix=dict(data_prefix),
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            ignore_index=ignore_index,
            reduce_zero_label=reduce_zero_label,
            pipeline=list(pipeline),
            test_mode=test_mode,
            lazy_init=True,
            indices=indices,
            serialize_data=serialize_data,
            max_refetch=max_refetch,
            backend_args=backend_args,
        )
        if self.table and any(type(step) is LoadAnnotations for step in self.pipeline.transforms):
            raise UserError(
                'masks are read by colour, and LoadAnnotations in the pipeline of FolderDataset cannot do that; write '
                "dict(type='LoadLabels')"
            )
        ignored = dict.fromkeys(ignore_labels, ignore_index)
        self.label_map = {int(old): int(new) for old, new in {**(label_map or {}), **ignored}.items()} or None
        if not lazy_init:
            self.full_init()

    def pair(self) -> Pairing:
        """The pairs in the two folders by name without suffix, and the files without a partner."""
        mask_dir = self.data_prefix.get('seg_map_path')
        return pair_folders(
            Path(self.data_prefix['img_path']),
            Path(mask_dir) if mask_dir else None,
            image_suffixes=(self.img_suffix,) if isinstance(self.img_suffix, str) else tuple(self.img_suffix),
            mask_suffix=self.seg_map_suffix,
            any_case=True,
        )

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The input of the pipeline for sample ``idx``: its files, how its labels are read, and the colour table."""
        return {**super().get_data_info(idx), 'colour_table': self.table}

    def load_data_list(self) -> list[dict[str, Any]]:
        """Pair every image with its mask, sorted."""
        found = self.pair()
        if found.twins:
            one, other = found.twins[0]
            raise UserError(f'{other!r} and {one!r} share a name and would share a mask; rename one')
        if found.unlabelled:
            image, mask = found.unlabelled[0]
            hint = suffix_hint(found.unlabelled, suffix=self.seg_map_suffix)
            raise UserError(f'image {image!r} has no mask {mask!r}; add it, or remove the image{hint}')
        common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
        return [
            dict(img_path=image, **({'seg_map_path': mask} if mask else {}), **common, seg_fields=[])
            for image, mask in found.pairs
        ]


def colour_table(
    names: Sequence[str], colours: Sequence[Sequence[int]], ignored: Sequence[Sequence[int]], ignore_index: int
) -> ColourTable:
    """The table for reading masks by colour.

    Raises:
        UserError: The number of colours is not that of the classes, or a colour is not RGB in 0..255 or occurs twice.
    """
    if len(colours) != len(names):
        raise UserError(f'colours has {len(colours)} colours for {len(names)} classes; give one per class')
    owners: dict[Colour, str] = {}
    for colour, name in zip([*colours, *ignored], [*names, *['ignore_colours'] * len(ignored)], strict=True):
        key = tuple(int(value) for value in colour)
        if len(key) != 3 or not all(0 <= value <= 255 for value in key):
            raise UserError(f'the colour {list(colour)} of {name!r} is not RGB in 0..255')
        if key in owners:
            raise UserError(f'{owners[key]!r} and {name!r} have the same colour {list(key)}; give each its own')
        owners[key] = name
    keys = list(owners)
    return ColourTable(tuple(keys[: len(names)]), tuple(keys[len(names) :]), ignore_index)
