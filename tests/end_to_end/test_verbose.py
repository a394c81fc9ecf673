"""``--verbose`` tells the rest, and changes no file."""

import functools
import shutil
from pathlib import Path

import pytest

from objectloc import command as localization
from objectseg import evaluation as object_segmentation
from running import error_line, extracted, run_here, write_pictures
from spectralseg.progress import be_verbose, details, progress_bar, verbose_since
from spectralseg.running.workers import map_processes
from worker_jobs import save_since

EIGS = "extract_eigs"
LOCALIZE = "localize, recorded of the input: eigs.which_matrix=laplacian"


def eigs(work: Path, output: Path, *flags: str) -> None:
    run_here(EIGS, *flags, images_root=work / "images", features_dir=work / "features", output_dir=output, K=3)


def localize(work: Path, output: Path, *flags: str) -> None:
    folders = ["--images_root", work / "images", "--precomputed_eigs_dir", work / "eigs", "--output_dir", output]
    localization.main([*map(str, ["--eigenseg", "--dataset", "folder", *folders]), *flags])


def score_masks(work: Path, output: Path, *flags: str) -> None:
    entry = "{name: own, images_dir: images, labels_dir: maps, folder: .}"
    roots = [f"data_root={work}", f"predictions.root={work}", "predictions.run=maps", f"hydra.run.dir={output}"]
    object_segmentation.main([*roots, f"data=[{entry}]", "hydra.output_subdir=null", *flags])


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    extracted(write_pictures(folder / "images", 2), folder)
    both = {"features_dir": folder / "features", "eigs_dir": folder / "eigs"}
    run_here("extract_single_region_segmentations", **both, output_dir=folder / "maps")
    return folder


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "flag", "told"),
    [
        (
            eigs,
            "--verbose",
            [f"{EIGS}, given: ", "K=3", f"{EIGS}, default: ", " which_matrix=laplacian", "3 eigenvectors of"],
        ),
        (
            localize,
            "--verbose",
            ["given: ", " eigenseg=true", "default: ", "k_patches=100", LOCALIZE, "writing the results: "],
        ),
        (
            score_masks,
            "verbose=true",
            ["given: ", "data_root=", "of eval: ", " strict=false", "scores of a data"],
        ),
        (score_masks, "--verbose", ["own: 100%"]),
    ],
)
def test_the_rest_is_told_and_files_are_the_same(command, flag, told, work, tmp_path, capsys):
    output = tmp_path / "output"
    command(work, output)
    quiet, said = files(output), capsys.readouterr().err
    assert quiet
    assert "[" not in said
    assert "images to do" not in said
    shutil.rmtree(output)
    command(work, output, flag)
    said = capsys.readouterr().err
    assert files(output) == quiet
    assert [text for text in [*told, "memory: ", " MB] ", "s, ", "100%"] if text not in said] == []
    assert verbose_since() is None  # the next command of this process is quiet
    assert progress_bar([]).disable


def test_what_is_reused_is_named(work, tmp_path, capsys):
    eigs(work, tmp_path / "eigs")
    eigs(work, tmp_path / "eigs", "--verbose")
    said = capsys.readouterr().err
    assert f"{EIGS}: 2 reused from {tmp_path / 'eigs'}: image0, image1" in said
    assert f"{EIGS}, recorded of the input: features.model_name=lab_hog" in said
    assert f"{EIGS}: 0 of 2 images to do, device cpu, which_matrix laplacian" in said


def test_workers_tell_details_too(tmp_path):
    be_verbose(5.0)
    with details():
        assert list(map_processes(functools.partial(save_since, tmp_path), ["worker"], 1)) == [("worker", None)]
    assert (tmp_path / "worker").read_text() == "5.0"


def test_neither_true_nor_false_is_refused(work, tmp_path):
    assert error_line(eigs, work, tmp_path, "--verbose=much") == "error: --verbose takes True or False, not 'much'"
    assert error_line(score_masks, work, tmp_path, "verbose=much") == "error: there is no setting 'verbose'"
