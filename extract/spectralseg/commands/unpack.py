"""From the tables of ``stream`` to the files of the stages."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spectralseg.commands import bboxes, eigs, masks, rows
from spectralseg.errors import InputError
from spectralseg.files.images import view_of
from spectralseg.files.label_maps import save_labels
from spectralseg.files.names import check_id
from spectralseg.files.shards import TableFolder
from spectralseg.files.storage import save_record
from spectralseg.running.stage import FileStage, Stage
from spectralseg.settings import settings_from


def unpack(tables_dir: str, output_dir: str, overwrite: bool = False) -> None:
    """The command of that name; see its documentation in ``extract.py``."""
    folder, output = TableFolder(tables_dir), Path(output_dir)
    made = rows.made_by(folder)
    if made is None:
        raise InputError(f"{tables_dir} holds no {rows.DESCRIPTION}, as stream writes it")
    names = sorted(name for name in folder.names() if name.endswith(".parquet"))
    where: dict[str, str] = {}
    for name in names:
        table = folder.read(name, ["id", "error"])
        rows.check_table(table, made, f"{tables_dir}/{name}")
        for row in table.to_pylist():
            if row["error"] is None and check_id(row["id"]) in where:
                raise InputError(f"{tables_dir}: two images are called {row['id']}, in {where[row['id']]} and {name}")
            if row["error"] is None:
                where[row["id"]] = name
    if not where:
        raise InputError(f"{tables_dir} holds no table with an image in it")
    of_masks = {"eigs": made["eigs"]}
    multi = made["multi"] | of_masks
    kinds: list[tuple[str, str, str, dict[str, Any], Callable[[Path, dict[str, Any]], None]]] = [
        (
            "single_region_segmentation/patches",
            "extract_single_region_segmentations",
            ".png",
            made["single"] | of_masks,
            _mask,
        ),
        ("multi_region_segmentation/patches", "extract_multi_region_segmentations", ".png", multi, _segments),
    ]
    if made["eigenvectors"] in rows.FLOATS:
        kinds.append(("eigs", "extract_eigs", ".pth", made["eigs"], functools.partial(_eigenvectors, made["eigs"])))
    for below, command, suffix, arguments, save in kinds:
        stage = Stage(command, output / below, suffix, arguments, overwrite)
        pending = set(stage.begin(where))
        with stage.working():
            for image_id in _each(folder, names, pending, functools.partial(_saved, stage, save)):
                stage.done(image_id)
        stage.finish()
    settings = settings_from(bboxes.BoxSettings, made["boxes"])
    found = FileStage("extract_bboxes", output / "bboxes.pth", made["boxes"] | {"segmentations": multi}, overwrite)
    if not found.is_done():
        of_row = functools.partial(_boxes, made_by=made["eigs"], settings=settings)
        found.finish(sorted(_each(folder, names, set(where), of_row), key=lambda record: record["id"]))


def _each(folder: TableFolder, names: list[str], wanted: set[str], work: Callable[[dict[str, Any]], Any]) -> Iterator:
    """What ``work`` makes of the rows of these images."""
    for name in names if wanted else []:
        for row in folder.read(name).to_pylist():
            if row["error"] is not None or row["id"] not in wanted:
                continue
            try:
                found = work(row)
            except InputError:
                raise
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise InputError(
                    f"{folder.path}/{name}: the row of {row['id']} is damaged ({error}); delete it"
                ) from None
            yield found


def _saved(stage: Stage, save: Callable[[Path, dict[str, Any]], None], row: dict[str, Any]) -> str:
    save(stage.output(row["id"]), row)
    return row["id"]


def _mask(path: Path, row: dict[str, Any]) -> None:
    masks.save_object(path, rows.mask_of(row), "palette")


def _segments(path: Path, row: dict[str, Any]) -> None:
    save_labels(path, rows.segments_of(row))


def _eigenvectors(made_by: dict[str, Any], path: Path, row: dict[str, Any]) -> None:
    view = {"file": row["name"]} | view_of(made_by["features"])
    grid = (row["rows"], row["columns"])
    about = eigs.about_image(row["id"], (row["height"], row["width"]), grid, row["step"], view, made_by["which_matrix"])
    save_record(path, eigs.record_of(about, *rows.eigenvectors_of(row)))


def _boxes(row: dict[str, Any], made_by: dict[str, Any], settings: bboxes.BoxSettings) -> dict[str, Any]:
    shape = (row["height"], row["width"])
    return bboxes.boxes_of(row["id"], rows.segments_of(row), shape, row["step"], view_of(made_by["features"]), settings)
