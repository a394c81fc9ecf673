"""From masks to cut-outs with soft edges and a transparent background."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from spectralseg.errors import InputError
from spectralseg.files.images import load_image, read_images_list
from spectralseg.files.label_maps import load_labels, upscale_labels
from spectralseg.files.storage import save_picture
from spectralseg.mathematics.matting import METHODS, cut_out, default_band, require_pymatting, trimap
from spectralseg.progress import say
from spectralseg.running.stage import Stage, check_origin, provenance
from spectralseg.settings import Settings, setting


@dataclass(frozen=True)
class MatteSettings(Settings):
    """What decides how a cut-out looks, under the names of the command's flags; widths None: by the image's size."""

    method: str = setting("closed_form", choices=METHODS)
    num_erode: int | None = setting(None, least=0)
    num_dilate: int | None = setting(None, least=0)
    downsample_factor: int = setting(16, least=1)


def extract_mattes(
    images_list: str,
    images_root: str,
    segmentations_dir: str,
    output_dir: str,
    settings: MatteSettings | None = None,
    multiprocessing: int = 0,
    overwrite: bool = False,
) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    settings = settings or MatteSettings()
    files = read_images_list(images_list, images_root)
    if not Path(segmentations_dir).is_dir():
        raise InputError(f"no such segmentations_dir: {segmentations_dir}")
    check_origin(segmentations_dir, patch=settings.downsample_factor)
    require_pymatting()  # before the workers start: compiled once, they find it on disk
    arguments = {**vars(settings), "segmentations": provenance(segmentations_dir)}
    stage = Stage("extract_mattes", output_dir, ".png", arguments, overwrite)
    paths = {image_id: Path(images_root) / name for image_id, name in files.items()}
    work = functools.partial(_cut_out, paths, Path(segmentations_dir), stage.folder, settings)
    stage.run(work, stage.begin(files), multiprocessing)
    stage.finish()


def _cut_out(
    paths: dict[str, Path], segmentations_dir: Path, folder: Path, settings: MatteSettings, image_id: str
) -> None:
    mask = load_labels(segmentations_dir / f"{image_id}.png") > 0
    image = np.array(load_image(paths[image_id]))
    height, width = image.shape[:2]
    step = settings.downsample_factor
    band = default_band(height, width, 1 if mask.shape == (height, width) else step)
    if not mask.any():
        say(f"extract_mattes: {image_id}: its mask is empty, so its cut-out is fully transparent")
    known = trimap(
        upscale_labels(mask, height, width, step),
        band if settings.num_erode is None else settings.num_erode,
        band if settings.num_dilate is None else settings.num_dilate,
    )
    save_picture(folder / f"{image_id}.png", Image.fromarray(cut_out(image, known, settings.method)))
