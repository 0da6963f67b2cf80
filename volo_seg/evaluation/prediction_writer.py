"""Write predictions as label PNGs with the names of their images."""

from __future__ import annotations

from pathlib import Path, PurePath

from volo_seg.errors import UserError
from volo_seg.label_png import Labels, write_labels


class PredictionWriter:
    """Write predictions to ``<folder>/<image name>.png``; with ``img_dir``, keep the subfolders below it."""

    def __init__(self, folder: str | Path, *, img_dir: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.img_dir = None if img_dir is None else PurePath(img_dir)
        self.sources: dict[str, str] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f'output_dir={str(folder)!r} is a file; name a folder')

    def write(self, labels: Labels, *, img_path: str) -> Path:
        """Write one prediction (H, W) and return its path.

        Raises:
            UserError: Another image has the same prediction file, or the file exists and is not a prediction.
        """
        name = self._name(PurePath(img_path)).as_posix()
        check_sources([self.sources, {name: img_path}])
        self.sources[name] = img_path
        path = self.folder / name
        write_labels(path, labels)
        return path

    def _name(self, image: PurePath) -> PurePath:
        if self.img_dir is None:
            return PurePath(image.stem + '.png')
        try:
            return image.relative_to(self.img_dir).with_suffix('.png')
        except ValueError:
            raise UserError(f'{image} is not below img_dir={str(self.img_dir)!r}; correct img_dir') from None


def check_sources(parts: list[dict[str, str]]) -> None:
    """Check that the prediction files of all processes are different.

    Args:
        parts: The images by prediction file, one dict per process.

    Raises:
        UserError: Two images have the same prediction file.
    """
    known: dict[str, str] = {}
    for part in parts:
        for name, source in part.items():
            if known.setdefault(name, source) != source:
                raise UserError(
                    f'{known[name]} and {source} would both be written to {name}; '
                    'set img_dir to the folder above all images, so that their subfolders are kept'
                )
