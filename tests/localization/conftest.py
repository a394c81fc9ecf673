"""Run object-localization/main.py within the tests' process, on data sets of a few pictures."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from objectloc.command import main


@dataclass(frozen=True)
class Results:
    """What a run left, and what it said."""

    folder: Path
    error: str  # the line of a run that ended with status 1
    said: str
    complained: str

    @property
    def summary(self) -> dict:
        """results.json."""
        return json.loads((self.folder / "results.json").read_text())

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        """boxes.csv: file -> row."""
        with open(self.folder / "boxes.csv", newline="") as file:
            return {row["file"]: row for row in csv.DictReader(file)}

    def box(self, file: str) -> list[float]:
        """The box of an image, from the CSV."""
        return [float(self.rows[file][side]) for side in ("xmin", "ymin", "xmax", "ymax")]


@pytest.fixture
def localization(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Results]:
    """Flags -> what came of them; results lie below ``tmp_path / "results"``, by ``name``.

    The run must end with status 0, or, where it ``fails``, with an error.
    """
    from objectloc import localize
    from objectloc.patch_models import load_model

    def run(*flags: object, name: str = "run", fails: bool = False) -> Results:
        localize.data_set.cache_clear()  # one test may change a data set between two runs
        load_model.cache_clear()
        capsys.readouterr()
        error = ""
        try:
            main([*map(str, flags), "--output_dir", str(tmp_path / "results"), "--name", name])
        except SystemExit as stop:
            error = str(stop.code)
        output = capsys.readouterr()
        assert bool(error) == fails, output.err
        folder = next((tmp_path / "results").glob(f"*/{name}"), tmp_path / "results")
        return Results(folder, error, output.out, output.err)

    return run


@pytest.fixture
def voc(tmp_path: Path) -> Callable[..., Path]:
    """Pictures and texts of their XML annotations -> a ``--data_root`` with them as VOC07's test set."""
    from running import picture

    def write(annotations: dict[str, str | None]) -> Path:
        root = tmp_path / "data" / "VOC2007" / "VOCdevkit" / "VOC2007"
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for index, (image_id, text) in enumerate(annotations.items()):
            picture(index).save(root / "JPEGImages" / f"{image_id}.jpg")
            if text is not None:
                (root / "Annotations" / f"{image_id}.xml").write_text(text)
        (root / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{image_id}\n" for image_id in annotations))
        return tmp_path / "data"

    return write
