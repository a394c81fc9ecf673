"""``run``: from a folder of photographs to masks, cut-outs, boxes and a page, by way of the usual stages."""

import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spectralseg.api import object_box
from spectralseg.commands import eigs, features, masks, objects, semantic
from spectralseg.commands.choices import StageChoices
from spectralseg.commands.vis_eigs import Sources, load_card
from spectralseg.commands.vis_objects import object_panels
from spectralseg.drawing.page import Card, write_page
from spectralseg.drawing.pictures import draw_object, fit_height
from spectralseg.errors import ImagesFailed, InputError, some_of
from spectralseg.files.images import EXTENSIONS, list_images, load_image, open_picture, reduce_to
from spectralseg.files.label_maps import (
    MASK_FORMATS,
    SOFT,
    enlarge_mask,
    label_picture,
    load_labels,
    load_soft,
    save_soft,
    upscale_labels,
    voc_palette,
)
from spectralseg.files.storage import atomic_write, load_json, make_folder, remove_leftovers, save_json, save_picture
from spectralseg.mathematics.crf import BACKENDS, CrfSettings
from spectralseg.models.backbones import LAB_GRAPH, MAX_SIZE
from spectralseg.models.tokens import TokenExtractor
from spectralseg.progress import say
from spectralseg.running.devices import device_or_processes, pick_device
from spectralseg.running.stage import DESCRIPTION_FILE, Stage, describe, provenance
from spectralseg.settings import setting

THUMBNAIL_HEIGHT = 180
MAX_CARDS = 1000
ONE_FILE = (".png", ".json")  # names of outputs that are no folder: the cut-out, the box
CARD_EIGENVECTORS = 4


@dataclass(frozen=True)
class RunSettings(StageChoices):
    """What ``run`` decides beside the features; see ``run`` in ``extract.py``."""

    mask_format: str = setting("palette", choices=MASK_FORMATS)
    crf: bool = True
    crf_backend: str = setting("auto", choices=BACKENDS)
    max_size: int | None = setting(None, least=1)
    objects: int = setting(0, least=0)


class Folders:
    """Where everything lies below the output folder."""

    has_soft = False  # whether there are soft maps of the object
    has_objects = False  # whether several objects were looked for

    def __init__(self, output: Path) -> None:
        self.output = output
        self.images, self.images_list = output / "images", output / "images.txt"
        self.features, self.eigs = output / "features", output / "eigs"
        self.mask_patches = output / "single_region_segmentation" / "patches"
        self.mask_soft = output / "single_region_segmentation" / "soft"
        self.mask_crf = output / "single_region_segmentation" / "crf"
        self.segment_patches = output / "multi_region_segmentation" / "patches"
        self.segment_crf = output / "multi_region_segmentation" / "crf"
        self.masks, self.cutouts, self.maps = output / "masks", output / "cutouts", output / "maps"
        self.outlines, self.objects = output / "outlines", output / "objects"


def run(
    images: str,
    output: str,
    feature_settings: features.FeatureSettings,
    settings: RunSettings,
    batch_size: int | None = None,
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """The command ``run``; see its documentation in ``extract.py``."""
    how = (feature_settings, settings, batch_size, multiprocessing, device)
    target = Path(output)
    if target.suffix.lower() not in ONE_FILE:
        count, failures = run_stages(images, target, *how, overwrite)
        print(f"{count - len(failures)} of {count} photographs -> {target / 'index.html'}")
        if failures:
            raise ImagesFailed(f"{len(failures)} of {count} photographs failed: see the lines above", failures)
        return
    if not Path(images).is_file():
        raise InputError(f"{output} is one file, and {images} no photograph: give a folder as --output")
    if target.exists() and not overwrite:
        raise InputError(f"{output} is there already: name another file, or add --overwrite")
    with tempfile.TemporaryDirectory(prefix="spectralseg-") as folder:
        _, failures = run_stages(images, Path(folder), *how, overwrite)
        if failures:
            raise ImagesFailed(f"{images}: {next(iter(failures.values()))}", failures)
        (result,) = load_json(Path(folder) / "results.json")["images"]
        if target.suffix.lower() == ".json":
            save_json(target, {name: result[name] for name in ("file", "width", "height", "box")}, indent=1)
        else:
            with atomic_write(target) as file:
                file.write((Path(folder) / result["cutout"]).read_bytes())
    print(target)


def run_stages(
    images: str,
    output: Path,
    feature_settings: features.FeatureSettings,
    settings: RunSettings,
    batch_size: int | None = None,
    multiprocessing: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    extractor: TokenExtractor | None = None,
    seconds: dict[str, float] | None = None,
    results: bool = True,
    keep_features: bool = False,
) -> tuple[int, dict[str, str]]:
    """All stages, one after the other; the number of photographs, and why some of them failed.

    ``extractor``: that of :func:`features.load_extractor`, where it is there already; ``seconds`` gets the time of each
    folder's stage; without ``results`` the last ones, at the size of the photographs, are left out. Features are
    written with ``keep_features``, and where a stage reads them or processes share the work.
    """
    photographs, root = find_photographs(images, output), Path(images)
    root = root.parent if root.is_file() else root
    where = device_or_processes(device, multiprocessing)
    if settings.crf:
        CrfSettings(crf_backend=settings.crf_backend).resolved(where)  # said before the work, if it is not installed
    folders = Folders(output)
    if not overwrite:
        _refuse_other_crf(folders, settings.crf)
    extractor = extractor or features.load_extractor("run", feature_settings, pick_device(device))
    model_name = extractor.backbone.name
    preset = settings.preset(model_name)
    max_size = preset.max_size if model_name in MAX_SIZE else None  # that of the working copies: they stay as they are
    feature_settings = replace(feature_settings, model_name=model_name, max_size=max_size)
    remove_leftovers(make_folder(output), below=True)
    failures: dict[str, str] = {}

    def step(command: Callable[..., None], *arguments: Any, **options: Any) -> None:
        started = time.perf_counter()
        try:
            command(*arguments, overwrite=overwrite, **options)
        except ImagesFailed as error:  # said already; the other images go on to the next stage
            for image_id, problem in error.failures.items():
                failures.setdefault(image_id, problem)
            if photographs.keys() <= failures.keys():
                message = "none of the photographs could be handled; see the lines above"
                raise ImagesFailed(message, failures) from None
        if seconds is not None:
            seconds[command.__name__] = seconds.get(command.__name__, 0) + time.perf_counter() - started

    step(shrink_photographs, photographs, root, folders.images, preset.max_size, multiprocessing)
    _write_list(folders, [image_id for image_id in photographs if image_id not in failures])
    listed, copies = str(folders.images_list), str(folders.images)
    by_colours = preset.foreground != "eigenvector" and model_name == LAB_GRAPH
    has_features = bool(keep_features or settings.objects or by_colours or multiprocessing)
    features_dir = str(folders.features) if has_features else None
    of_eigs, single, multi = settings.stages(preset, settings.mask_format)
    both, how = (features_dir, str(folders.eigs)), (batch_size, device)
    if features_dir is None:
        of_images = (listed, copies, str(folders.eigs), feature_settings, of_eigs, *how)
        step(eigs.extract_eigs_of_images, *of_images, extractor=extractor)
    else:
        step(features.extract_features, listed, copies, features_dir, feature_settings, *how, extractor=extractor)
        step(eigs.extract_eigs, copies, *both, of_eigs, multiprocessing, device)
    step(masks.extract_single_region_segmentations, *both, str(folders.mask_patches), single, multiprocessing)
    has_soft = folders.has_soft = preset.foreground != "eigenvector"
    if has_soft:
        soft = replace(single, mask_format=SOFT)
        step(masks.extract_single_region_segmentations, *both, str(folders.mask_soft), soft, multiprocessing)
    step(masks.extract_multi_region_segmentations, *both, str(folders.segment_patches), multi, multiprocessing)
    patch_size = extractor.backbone.patch_size
    if settings.crf:
        coarse = folders.mask_soft if has_soft else folders.mask_patches
        pairwise = asdict(preset.crf if has_soft else CrfSettings()) | {"crf_backend": settings.crf_backend}
        of_masks = {"num_classes": 2, "mask_format": settings.mask_format, "soft": has_soft}
        of_segments = {"num_classes": max(2, settings.num_segments)}
        for patches, sharp, chosen in (
            (coarse, folders.mask_crf, pairwise | of_masks),
            (folders.segment_patches, folders.segment_crf, {"crf_backend": settings.crf_backend} | of_segments),
        ):
            crf = semantic.SharpenSettings(downsample_factor=patch_size, **chosen)
            maps = (str(patches), str(sharp))
            step(semantic.extract_crf_segmentations, listed, copies, *maps, crf, multiprocessing, device)
    if settings.objects:
        folders.has_objects = True
        of_objects: dict[str, Any] = {"which_features": settings.which_features, "max_objects": settings.objects}
        several = objects.ObjectSettings(crf=settings.crf, crf_backend=settings.crf_backend, **of_objects)
        to = (str(folders.features), str(folders.objects))
        step(objects.extract_objects, listed, copies, *to, several, multiprocessing, device)
    if not results:
        return len(photographs), failures
    finished = {image_id: name for image_id, name in photographs.items() if image_id not in failures}
    step(cut_out_objects, finished, root, folders, settings.crf, patch_size, multiprocessing)
    finished = {image_id: name for image_id, name in finished.items() if image_id not in failures}
    facts = {"model": model_name, "weights": extractor.backbone.weights, "matrix": preset.which_matrix, "K": preset.K}
    facts |= {"object by": preset.foreground, "segments": settings.num_segments, "CRF": "yes" if settings.crf else "no"}
    facts["longer side"] = f"{preset.max_size} pixels at most"
    write_results(finished, failures, folders, settings.crf, facts)
    gone = sorted({path.stem for path in folders.masks.glob("[!.]*.png")} - photographs.keys())
    if gone and Path(images).is_dir():
        say(f"run: masks and cutouts hold {len(gone)} whose photographs are gone: {some_of(gone)}")
    return len(photographs), failures


def find_photographs(images: str | Path, output: str | Path) -> dict[str, str]:
    """Photographs in a folder and its sub-folders: id -> path below the folder; of a file, that one.

    The id is the path without its extension, ``holiday/beach.jpg`` being ``holiday__beach``; two files that differ in
    their extension alone keep it (``beach_jpg``, ``beach_png``). What lies in the output folder is left out, and so are
    results of earlier runs, which is said.

    Raises
    ------
    InputError
        No such folder, no photograph in it, or it lies in the output folder.
    """
    root, result = Path(images), Path(output).resolve()
    if root.is_file():
        return {root.stem: root.name}
    if result in (root.resolve(), *root.resolve().parents):
        raise InputError(f"the photographs of {root} lie in the output folder {output}; name another one")
    found = sorted(Path(name) for name in list_images(root))
    paths = [path for path in found if result not in (root / path).resolve().parents]

    @functools.cache
    def is_result(folder: Path) -> bool:
        marks = (DESCRIPTION_FILE, f"masks/{DESCRIPTION_FILE}")
        return folder != Path() and (is_result(folder.parent) or any((root / folder / mark).exists() for mark in marks))

    earlier = [path.as_posix() for path in paths if is_result(path.parent)]
    if earlier:
        say(f"run: {len(earlier)} images are results of earlier runs, left out: {some_of(earlier)}")
        paths = [path for path in paths if not is_result(path.parent)]
    if not paths:
        raise InputError(f"no image in {root} or below it (known are {', '.join(sorted(EXTENSIONS))})")
    names = ["__".join(path.with_suffix("").parts) for path in paths]
    count = Counter(names)
    ids = [
        name if count[name] == 1 else name + path.suffix.replace(".", "_")
        for name, path in zip(names, paths, strict=True)
    ]
    if len(set(ids)) < len(ids):
        twice = next(name for name, times in Counter(ids).items() if times > 1)
        one, other = [path.as_posix() for image_id, path in zip(ids, paths, strict=True) if image_id == twice][:2]
        raise InputError(f"{root}: '{one}' and '{other}' would both be called '{twice}'; rename one of them")
    return {image_id: path.as_posix() for image_id, path in zip(ids, paths, strict=True)}


def shrink_photographs(
    photographs: dict[str, str], root: Path, folder: Path, max_size: int, multiprocessing: int, overwrite: bool
) -> None:
    """Write upright RGB working copies, ``<id>.png``, whose longer side has at most ``max_size`` pixels."""
    stage = Stage("run: images", folder, ".png", {"max_size": max_size, "images": str(root.resolve())}, overwrite)
    work = functools.partial(_shrink, photographs, root, folder, max_size)
    stage.run(work, stage.begin(photographs), multiprocessing)
    stage.finish()


def _shrink(photographs: dict[str, str], root: Path, folder: Path, max_size: int, image_id: str) -> None:
    image = load_image(root / photographs[image_id])
    reduce_to(image, max_size)
    save_picture(folder / f"{image_id}.png", image, compress_level=1)


def _refuse_other_crf(folders: Folders, crf: bool) -> None:
    """Said before any work, and in one clause: all arguments of the stage before the masks' are others."""
    origin = (describe(folders.masks) or {"arguments": {}})["arguments"].get("from")
    if isinstance(origin, dict) and crf != ("segmentations" in origin):
        advice = "add --nocrf" if crf else "leave --nocrf out"
        raise InputError(
            f"{folders.output} holds a run with{'out' if crf else ''} the CRF: {advice}, choose another output folder, "
            "or redo it with --overwrite"
        )


def _write_list(folders: Folders, ids: list[str]) -> None:
    with atomic_write(folders.images_list) as file:
        file.write("".join(f"{image_id}.png\n" for image_id in ids).encode())


def cut_out_objects(
    photographs: dict[str, str],
    root: Path,
    folders: Folders,
    crf: bool,
    patch_size: int,
    multiprocessing: int,
    overwrite: bool,
) -> None:
    """Write ``masks/<id>.png`` (0 and 255) and ``cutouts/<id>.png`` (RGBA) at the size of the photographs.

    Where there are soft maps, also ``maps/<id>.png`` (grey).
    """
    source = folders.mask_crf if crf else folders.mask_patches
    make_folder(folders.cutouts)
    if folders.has_soft:
        make_folder(folders.maps)
    stage = Stage("run: masks", folders.masks, ".png", {"from": provenance(source)}, overwrite)
    work = functools.partial(_cut_out, photographs, root, folders, source, patch_size)
    stage.run(work, stage.begin(photographs), multiprocessing)
    stage.finish()


def _cut_out(
    photographs: dict[str, str], root: Path, folders: Folders, source: Path, patch_size: int, image_id: str
) -> None:
    photograph = load_image(root / photographs[image_id])
    with open_picture(folders.images / f"{image_id}.png") as working_copy:
        width, height = working_copy.size
    mask = upscale_labels(load_labels(source / f"{image_id}.png"), height, width, patch_size)
    alpha = Image.fromarray(enlarge_mask(mask > 0, photograph.size) * np.uint8(255))
    cutout = photograph.copy()
    cutout.putalpha(alpha)
    if folders.has_soft:
        soft = load_soft(folders.mask_soft / f"{image_id}.png")
        map_of_copy = Image.fromarray(upscale_labels(soft, height, width, patch_size))
        enlarged = np.array(map_of_copy.resize(photograph.size, Image.Resampling.BILINEAR))
        save_soft(folders.maps / f"{image_id}.png", enlarged)
    for folder, picture in ((folders.cutouts, cutout), (folders.masks, alpha)):  # masks last: they mark what is done
        save_picture(folder / f"{image_id}.png", picture)


def write_results(
    photographs: dict[str, str], failures: dict[str, str], folders: Folders, crf: bool, facts: dict[str, object]
) -> None:
    """Write ``results.json``, ``index.html`` and, for its large view, ``outlines/<id>.jpg``."""
    results = []
    make_folder(folders.outlines)

    def cards() -> Iterator[Card]:
        sources = Sources(folders.images, folders.eigs, num_eigenvectors=CARD_EIGENVECTORS)
        for number, (image_id, name) in enumerate(photographs.items()):
            result = _result(image_id, name, folders)
            results.append(result)
            if number < MAX_CARDS:
                yield _card(image_id, result, folders, sources, crf)

    description = (
        "Each photograph; the object's outline (yellow) and box (red); eigenvectors of the graph of patches, from "
        "lowest values (violet) to the highest (yellow), without the constant one; the object's mask (white); segments "
        "(the background black); the object cut out"
    )
    description += "; a map of how unlike the border each place is (the brighter, the more)" if folders.has_soft else ""
    description += "; several objects, numbered, each cut out, with its score" if folders.has_objects else ""
    description += ". A click enlarges, arrow keys go on."
    if len(photographs) > MAX_CARDS:
        description += f" Here are the first {MAX_CARDS} of {len(photographs)} photographs."
    write_page(
        folders.output / "index.html",
        "Objects",
        cards(),
        description,
        THUMBNAIL_HEIGHT,
        facts=facts,
        failed=failures,
        count=min(MAX_CARDS, len(photographs)),
    )
    content = {"images": results, "failed": failures, "boxes": "(xmin, ymin, xmax, ymax) in pixels, maxima exclusive"}
    save_json(folders.output / "results.json", content, indent=1)


def _result(image_id: str, name: str, folders: Folders) -> dict[str, Any]:
    mask = load_labels(folders.masks / f"{image_id}.png")
    box = object_box(mask > 0)
    return {
        "id": image_id,
        "file": name,
        "width": mask.shape[1],
        "height": mask.shape[0],
        "box": None if box is None else list(box),
        "object_share": round(float((mask > 0).mean()), 4),
        "mask": f"masks/{image_id}.png",
        "cutout": f"cutouts/{image_id}.png",
    }


def _card(image_id: str, result: dict[str, Any], folders: Folders, sources: Sources, crf: bool) -> Card:
    photograph, *eigenvectors = load_card(image_id, sources, THUMBNAIL_HEIGHT).panels
    size, object_id = photograph[1].size, f"{image_id}.png"
    with (
        open_picture(folders.images / object_id) as copy,
        open_picture(folders.masks / object_id) as mask,
        open_picture(folders.cutouts / object_id) as cutout,
    ):
        scale = copy.width / result["width"]
        box = None if result["box"] is None else [scale * side for side in result["box"]]
        outline = draw_object(copy, np.array(mask.resize(copy.size)) > 0, box)
        panels = [("mask", mask.resize(size)), ("cut-out", cutout.resize(size, Image.Resampling.LANCZOS))]
    save_picture(folders.outlines / f"{image_id}.jpg", outline, quality=90)
    segments = load_labels((folders.segment_crf if crf else folders.segment_patches) / object_id)
    panels.insert(1, ("segments", fit_height(label_picture(segments), THUMBNAIL_HEIGHT)))
    colours = np.array(voc_palette()).reshape(-1, 3)
    legend = [(f"rgb{tuple(colours[label].tolist())}", str(label)) for label in np.unique(segments).tolist()]
    notes = {"photograph": result["file"], "size": f"{result['width']} × {result['height']}"}
    notes["box"] = "none: the mask is empty" if result["box"] is None else ", ".join(map(str, result["box"]))
    full = {"mask": result["mask"], "cut-out": result["cutout"], "object": f"outlines/{image_id}.jpg"}
    full["image"] = f"images/{object_id}"
    if folders.has_objects:
        entries = load_json(folders.objects / f"{image_id}{objects.SUFFIX}")["objects"]
        entries.sort(key=lambda entry: -entry["score"])
        panels += object_panels(load_image(folders.images / object_id), entries, image_id)
    if folders.has_soft:
        with open_picture(folders.maps / object_id) as soft:
            panels.insert(0, ("map of the object", soft.resize(size)))
        full["map of the object"] = f"maps/{object_id}"
    return Card(
        image_id,
        [photograph, ("object", fit_height(outline, THUMBNAIL_HEIGHT)), *eigenvectors, *panels],
        notes,
        link=result["cutout"],
        full=full,
        scores={"size of the object": result["object_share"]},
        legends={"segments": legend},
    )
