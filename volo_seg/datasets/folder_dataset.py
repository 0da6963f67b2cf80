"""A data set of two folders, with images and masks, and a list of class names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS

from volo_seg.datasets.class_lists import check_class_names, read_classes
from volo_seg.datasets.masks import Colour, ColourTable
from volo_seg.datasets.pairs import Pairing, pair_by_template, pair_folders, read_pairs, suffix_hint
from volo_seg.datasets.transforms.loading import LoadLabels
from volo_seg.errors import UserError
from volo_seg.image_files import SUFFIXES
from volo_seg.io import read_lines
from volo_seg.visualization import default_palette


@DATASETS.register_module()
class FolderDataset(BaseSegDataset):
    """Pairs of images and label masks: with equal relative names in two folders, by a template, or from a list.

    Args:
        data_root: Folder that the other paths start from.
        data_prefix: ``img_path`` and ``seg_map_path``, folders below ``data_root``.
        ann_file: Text file below ``data_root`` with the images to use, one a line: the path below ``img_path`` without
            its suffix. Empty means all images of the folder, as does the name of a folder. A ``.csv`` file with the
            columns ``image`` and ``mask``, or a ``.jsonl`` file with these keys, lists pairs by their paths below
            ``data_root``, and ``data_prefix`` is not used.
        metainfo: Further entries of the meta information, and ``classes`` and ``palette`` if those are not given.
        filter_cfg: For a subclass with a ``filter_data``.
        classes: Class names in the order of their label values, or a file of them (see :func:`.read_class_list`); by
            default ``<data_root>/classes.txt``. A file with colours also gives ``colours``. A dict gives each class its
            label value in the masks, a list of values, or its colour as ``'#rrggbb'``; masks may have no other values
            but ``ignore_index`` and ``ignore_labels``.
        palette: An RGB colour (0..255) per class for drawing; by default ``colours``, or fixed distinct colours.
        colours: The RGB colour (0..255) of each class in colour-coded masks. With it, all masks are read by colour.
        ignore_colours: Colours of such masks that are neither trained nor evaluated.
        ignore_labels: Label values of the masks that are neither trained nor evaluated, besides ``ignore_index``.
        label_map: Label value of the masks -> class, for values that differ, e.g. ``{255: 1}`` for binary masks.
        img_suffix: Suffixes of images, in any case.
        seg_map_suffix: Suffix of masks.
        mask_template: Path of the mask of an image, such as ``'{folder}/../labels/{stem}_mask.png'``: ``{stem}`` is the
            image's name without suffix, ``{folder}`` its folder. Instead of ``seg_map_path`` and ``seg_map_suffix``.
        ignore_index: Label value that is ignored.
        reduce_zero_label: Whether label 0 is ignored and all others count from 1.
        pipeline, test_mode, lazy_init, indices, serialize_data, max_refetch, backend_args: As in MMSegmentation.

    Masks are 8-bit grey or palette images of label values, or images of the colours in ``colours``.

    ``METAINFO`` of the data set has its classes and palette, which tools of MMSegmentation read there.

    Raises:
        UserError: There are no class names, colours do not match them, two images have one name, or a mask or an image
            of ``ann_file`` is missing.
    """

    def __init__(
        self,
        *,
        data_root: str,
        data_prefix: Mapping[str, str],
        ann_file: str = '',
        metainfo: Mapping[str, Any] | None = None,
        filter_cfg: Mapping[str, Any] | None = None,
        classes: Sequence[str] | Mapping[str, Any] | str | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        colours: Sequence[Sequence[int]] | None = None,
        ignore_colours: Sequence[Sequence[int]] = (),
        ignore_labels: Sequence[int] = (),
        label_map: Mapping[int, int] | None = None,
        img_suffix: str | Sequence[str] = SUFFIXES,
        seg_map_suffix: str = '.png',
        mask_template: str = '',
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
        metainfo = dict(metainfo or {})
        given = _given_once('classes', classes, metainfo)
        values: dict[int, int] = {}
        if isinstance(given, Mapping):
            names, listed_colours, values = class_values(given)
        else:
            names, listed_colours = read_classes(given, data_root)
        if values and (label_map or reduce_zero_label or colours):
            raise UserError('classes gives label values; leave out label_map, reduce_zero_label and colours')
        self.mask_template = mask_template
        palette, colours = _given_once('palette', palette, metainfo), colours or listed_colours
        self.table = colour_table(names, colours, ignore_colours, ignore_index) if colours else None
        if self.table and reduce_zero_label:
            raise UserError('reduce_zero_label=True has no meaning for masks read by colour; use ignore_colours=[…]')
        palette = [list(colour) for colour in palette or colours or default_palette(len(names), first=1).tolist()]
        if len(palette) != len(names):
            raise UserError(f'palette has {len(palette)} colours for {len(names)} classes; give one per class')
        self.METAINFO = dict(classes=names, palette=palette)
        super().__init__(
            ann_file=ann_file,
            metainfo=metainfo | self.METAINFO,
            filter_cfg=filter_cfg,
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
        if values:  # a value that no class has is out of range, wherever it stands
            values = {**dict.fromkeys(range(255), 254), ignore_index: ignore_index, **values}
        self.label_map = {int(old): int(new) for old, new in {**(label_map or values), **ignored}.items()} or None
        if not lazy_init:
            self.full_init()

    def pair(self) -> Pairing:
        """The pairs in the two folders by name without suffix, and the files without a partner.

        Raises:
            UserError: ``ann_file`` cannot be read, or names an image that does not exist.
        """
        image_dir, mask_dir = Path(self.data_prefix['img_path']), self.data_prefix.get('seg_map_path')
        suffixes = (self.img_suffix,) if isinstance(self.img_suffix, str) else tuple(self.img_suffix)
        root = Path(self.data_root or '.')
        if self.ann_file.endswith(('.csv', '.jsonl')):
            return read_pairs(Path(self.ann_file), root=root)
        if self.mask_template:
            found = pair_by_template(image_dir, self.mask_template, root=root, image_suffixes=suffixes)
        else:
            found = pair_folders(
                image_dir,
                Path(mask_dir) if mask_dir else None,
                image_suffixes=suffixes,
                mask_suffix=self.seg_map_suffix,
                any_case=True,
            )
        if not self.ann_file or Path(self.ann_file).is_dir():
            return found

        def name_of(image: str) -> str:
            path = Path(image).relative_to(image_dir).as_posix()
            return path[: -max(len(suffix) for suffix in suffixes if path.lower().endswith(suffix.lower()))]

        names = dict.fromkeys(_listed_images(self.ann_file))
        pairs = {name_of(image): (image, mask) for image, mask in found.pairs}
        unlabelled = [entry for entry in found.unlabelled if name_of(entry[0]) in names]
        missing = names.keys() - pairs.keys() - {name_of(image) for image, _ in unlabelled}
        if missing:
            raise UserError(
                f'ann_file {self.ann_file!r} names image {min(missing)!r}, and {str(image_dir)!r} has no file of that '
                f'name with the suffix {" or ".join(suffixes)}; write the path below it, without its suffix'
            )
        return Pairing(
            pairs=[pairs[name] for name in names if name in pairs],
            unlabelled=unlabelled,
            twins=[entry for entry in found.twins if name_of(entry[0]) in names],
        )

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The input of the pipeline for sample ``idx``: its files and how its labels are read."""
        return {**super().get_data_info(idx), 'colour_table': self.table, 'label_map': self.label_map}

    def get_cat_ids(self, idx: int) -> list[int]:
        """The classes in the mask of sample ``idx``, by which ``ClassBalancedDataset`` repeats samples."""
        labels = np.unique(LoadLabels()(self.get_data_info(idx))['gt_seg_map'])
        return [int(label) for label in labels if label < len(self.metainfo['classes'])]

    def load_data_list(self) -> list[dict[str, Any]]:
        """Pair every image with its mask, sorted, or in the order of ``ann_file``."""
        found = self.pair()
        if found.twins:
            one, other = found.twins[0]
            raise UserError(f'{other!r} and {one!r} share a name and would share a mask; rename one')
        if found.unlabelled:
            image, mask = found.unlabelled[0]
            hint = suffix_hint(found, suffix=self.seg_map_suffix)
            others = ', '.join(repr(mask) for _, mask in found.unlabelled[1:3])
            more = f' ({len(found.unlabelled)} masks are missing, also {others})' if others else ''
            raise UserError(f'image {image!r} has no mask {mask!r}{more}; add it, or remove the image{hint}')
        common = dict(reduce_zero_label=self.reduce_zero_label)
        return [
            dict(img_path=image, **({'seg_map_path': mask} if mask else {}), **common, seg_fields=[])
            for image, mask in found.pairs
        ]


def _given_once(key: str, value: Any, metainfo: Mapping[str, Any]) -> Any:
    """``value``, or ``metainfo[key]`` if it is None.

    Raises:
        UserError: Both are given and differ.
    """
    other = metainfo.get(key)
    if value is not None and other is not None and value != other:
        raise UserError(f'{key}={value!r} and metainfo.{key}={other!r} differ; give one of them')
    return other if value is None else value


def class_values(classes: Mapping[str, Any]) -> tuple[list[str], list[Colour] | None, dict[int, int]]:
    """Names, colours and label value -> class of a dict of class names and their values or colours in masks.

    Raises:
        UserError: A value is neither a label value, a list of them nor ``'#rrggbb'``; or two classes have one value.
    """
    names = check_class_names(list(classes))
    if all(isinstance(value, str) and re.fullmatch('#[0-9a-fA-F]{6}', value) for value in classes.values()):
        return names, [(*bytes.fromhex(value[1:]),) for value in classes.values()], {}
    values: dict[int, int] = {}
    for index, (name, value) in enumerate(classes.items()):
        for one in value if isinstance(value, (list, tuple)) and value else [value]:
            if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one <= 255:
                raise UserError(
                    f"classes gives {name!r} the value {one!r}; give each class a label value 0..255, or each '#rrggbb'"
                )
            if one in values:
                raise UserError(
                    f'classes gives {names[values[one]]!r} and {name!r} the label value {one}; give each its own'
                )
            values[one] = index
    return names, None, values


def _listed_images(ann_file: str) -> list[str]:
    try:
        return read_lines(ann_file, most_bytes=2**28)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'ann_file {ann_file!r} cannot be read ({getattr(error, "strerror", None) or error}); '
            'write one image a line, without its suffix'
        ) from error


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
