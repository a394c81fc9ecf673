"""A stage folder: what it says of itself, what is kept and what is redone, and how processes share the images."""

import json
import os
import re
from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from running import contents, eigs_flags, features_flags, in_two_processes, run_here, write_pictures
from spectralseg.commands.cli import extract_eigs, extract_features
from spectralseg.errors import InputError, OutputError
from spectralseg.running.fire_app import main
from spectralseg.running.stage import Stage, describe, provenance, rank_and_world_size

ARGUMENTS = {"K": 5, "which_matrix": "laplacian", "which_block": (-1,), "lambda": 0.0}


def run_stage(folder, ids="abc", arguments=ARGUMENTS, fail=(), overwrite=False, command="extract_eigs"):
    """Write a file for each id; return the ids that were worked on."""
    worked = []
    stage = Stage(command, folder, ".pth", arguments, overwrite)

    def work(image_id):
        worked.append(image_id)
        if image_id in fail:
            raise ValueError("the image\nis upside down")
        stage.output(image_id).write_text(str(arguments))

    stage.run(work, stage.begin(ids))
    stage.finish()
    return worked


# --- the folder -----------------------------------------------------------------------------------------------------


def test_a_folder_explains_itself(tmp_path, capsys):
    run_stage(tmp_path / "eigs")
    description = json.loads((tmp_path / "eigs" / "stage.json").read_text())
    assert description.keys() == {"command", "arguments", "versions", "counts"}
    assert description["command"] == "extract_eigs"
    assert description["arguments"] == {"K": 5, "which_matrix": "laplacian", "which_block": [-1], "lambda": 0.0}
    assert description["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"spectralseg", "python", "timm", "numpy"} <= description["versions"].keys()
    assert description["counts"] == {"files": 3, "failed": 0}
    summary = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"extract_eigs: 3 written, 0 already there, 0 failed, in \d+\.\d s -> {tmp_path / 'eigs'}", summary
    )
    assert describe(tmp_path) is None
    assert provenance(tmp_path / "eigs") == description["arguments"]
    assert provenance(tmp_path) == str(tmp_path.resolve())


def test_what_is_there_is_kept(tmp_path):
    assert run_stage(tmp_path, "bd") == ["b", "d"]
    (tmp_path / "b.pth").write_text("kept")
    assert run_stage(tmp_path, "dcba") == ["a", "c"]
    assert (tmp_path / "b.pth").read_text() == "kept"
    assert json.loads((tmp_path / "stage.json").read_text())["counts"] == {"files": 4, "failed": 0}


def test_failures_are_reported_and_tried_again(tmp_path, capsys):
    with pytest.raises(InputError, match="^1 of 3 images failed in extract_eigs: see the lines above$"):
        run_stage(tmp_path, fail="b")
    assert "extract_eigs: b failed: ValueError: the image\n" in capsys.readouterr().err
    assert contents(tmp_path).keys() == {"a.pth", "c.pth", "stage.json"}
    assert run_stage(tmp_path) == ["b"]


def test_a_result_that_cannot_be_written_ends_the_run(tmp_path):
    stage = Stage("extract_eigs", tmp_path, ".pth", ARGUMENTS)
    worked = []

    def work(image_id):
        worked.append(image_id)
        raise OutputError("cannot write")

    with pytest.raises(OutputError):
        stage.run(work, stage.begin("abc"))
    assert worked == ["a"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"K": 6}, "with K=5 instead of 6"),
        ({"K": 6, "which_matrix": "affinity"}, "with K=5 instead of 6, which_matrix=laplacian instead of affinity"),
        ({"which_block": (-2, -1)}, r"with which_block=\[-1\] instead of \[-2, -1\]"),
        ({"device": "new"}, "with device=null instead of new"),
    ],
)
def test_other_arguments_are_refused_until_overwrite(change, difference, tmp_path):
    run_stage(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"already holds 3 \*.pth files, but {difference}; .* --overwrite$"):
        run_stage(tmp_path, arguments=ARGUMENTS | change)
    assert contents(tmp_path) == before
    assert run_stage(tmp_path, arguments=ARGUMENTS | change, overwrite=True) == ["a", "b", "c"]
    assert (tmp_path / "a.pth").read_text() == str(ARGUMENTS | change)
    assert run_stage(tmp_path, arguments=ARGUMENTS | change) == []


def test_a_killed_overwrite_leaves_no_old_file_behind(tmp_path):
    """Else whoever goes on without --overwrite would take old results for new ones."""
    run_stage(tmp_path)
    stage = Stage("extract_eigs", tmp_path, ".pth", ARGUMENTS | {"K": 6}, overwrite=True)
    assert stage.begin("abc") == ["a", "b", "c"]  # ... and is killed here
    assert contents(tmp_path).keys() == {"stage.json"}
    assert run_stage(tmp_path, arguments=ARGUMENTS | {"K": 6}) == ["a", "b", "c"]


def test_overwrite_never_leaves_a_mixture(tmp_path):
    run_stage(tmp_path, "abcd")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="and 2 of them are not in this run; choose another output folder$"):
        run_stage(tmp_path, "ab", ARGUMENTS | {"K": 6}, overwrite=True)
    assert contents(tmp_path) == before
    assert run_stage(tmp_path, "ab", overwrite=True) == ["a", "b"]  # the same arguments: no mixture


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_of_others_are_left_alone(overwrite, tmp_path):
    (tmp_path / "a.pth").write_text("model weights, perhaps")
    with pytest.raises(InputError, match=r"already holds 1 \*.pth files that no stage made; choose another"):
        run_stage(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {"a.pth": b"model weights, perhaps"}
    run_stage(tmp_path / "features", command="extract_features")
    before = contents(tmp_path / "features")
    with pytest.raises(InputError, match="files that extract_features made; choose another output folder"):
        run_stage(tmp_path / "features", overwrite=overwrite)
    assert contents(tmp_path / "features") == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"command": "extract_eigs", "arguments": [1]}', "\xff"])
def test_a_damaged_description_is_an_error(text, tmp_path):
    run_stage(tmp_path)
    (tmp_path / "stage.json").write_bytes(text.encode("latin-1"))
    for read in (run_stage, provenance):
        with pytest.raises(InputError, match="stage.json.* delete it if it is damaged$"):
            read(tmp_path)


def test_arguments_that_came_later_count_as_their_defaults(tmp_path):
    """A folder written before color_grid existed, and one made from it: both go on, and other values are refused."""
    old = ARGUMENTS | {"features": {"model_name": "lab_hog"}}
    run_stage(tmp_path / "eigs", arguments=old)
    run_stage(tmp_path / "masks", arguments={"threshold": 0.0, "eigs": old}, command="masks")
    new = old | {"color_grid": "cropped"}
    assert run_stage(tmp_path / "eigs", arguments=new) == []
    made_from = provenance(tmp_path / "eigs")
    assert made_from["color_grid"] == "cropped"
    masks = {"threshold": 0.0, "mask_format": "palette", "eigs": made_from}
    assert run_stage(tmp_path / "masks", arguments=masks, command="masks") == []
    with pytest.raises(InputError, match="with color_grid=cropped instead of released; "):
        run_stage(tmp_path / "eigs", arguments=old | {"color_grid": "released"})
    other = {"mask_format": "binary", "eigs": made_from | {"color_grid": "released"}}
    with pytest.raises(InputError, match="eigs.color_grid=cropped instead of released, mask_format=palette instead of"):
        run_stage(tmp_path / "masks", arguments=masks | other, command="masks")


# --- shares ---------------------------------------------------------------------------------------------------------


def slurm_array(task, first=0, count=4):
    return {
        "SLURM_ARRAY_TASK_ID": str(first + task),
        "SLURM_ARRAY_TASK_MIN": str(first),
        "SLURM_ARRAY_TASK_MAX": str(first + count - 1),
        "SLURM_ARRAY_TASK_COUNT": str(count),
    }


def srun(task, count):
    return {"SLURM_PROCID": str(task), "SLURM_STEP_NUM_TASKS": str(count)}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "5"}, (2, 5)),
        ({"RANK": "2"}, (0, 1)),
        (slurm_array(3, first=7), (3, 4)),
        (srun(1, 2), (1, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, (0, 1)),  # a batch script outside srun
        (slurm_array(2) | srun(1, 3), (2 * 3 + 1, 12)),
        ({"RANK": "1", "WORLD_SIZE": "2"} | slurm_array(3), (1, 2)),
    ],
)
def test_launchers(variables, expected, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_and_world_size() == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "process 2 of 2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "process -1 of 2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "process 0 of 0"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK='first', which is no whole number"),
        (slurm_array(0) | {"SLURM_ARRAY_TASK_MAX": "6"}, "must number its tasks without gaps"),
        ({"SLURM_ARRAY_TASK_ID": "0"}, "SLURM_ARRAY_TASK_MIN=None, which is no whole number"),
    ],
)
def test_launchers_that_make_no_sense(variables, message, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        rank_and_world_size()


@settings(max_examples=25)
@given(st.sets(st.text("abc", min_size=1), max_size=20), st.tuples(*[st.integers(1, 3)] * 2), st.booleans())
def test_shares_are_disjoint_and_cover(tmp_path_factory, ids, sizes, torchrun):
    """Whoever launches: each id belongs to exactly one process, and no process has two more than another."""
    folder = tmp_path_factory.mktemp("shares")
    array, step = sizes
    shares = []
    for task in range(array * step):
        variables = slurm_array(task // step, count=array) | srun(task % step, step)
        if torchrun:
            variables = {"RANK": str(task), "WORLD_SIZE": str(array * step)}
        with mock.patch.dict(os.environ, variables):
            shares.append(Stage("extract_eigs", folder, ".pth", {}).begin(ids))
    assert sorted(image_id for share in shares for image_id in share) == sorted(ids)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """Started at the same time on one folder: the same files, the same bytes."""
    images = write_pictures(tmp_path / "images", 7)
    main([extract_features], features_flags(images, tmp_path / "features"))
    main([extract_eigs], eigs_flags(images, tmp_path / "features", tmp_path / "one"))
    flags = eigs_flags(images, tmp_path / "features", tmp_path / "two")
    in_two_processes(partial(run_here, *flags), tmp_path)
    one, two = (contents(tmp_path / kind) for kind in ("one", "two"))
    assert one.keys() == {"stage.json", *(f"image{index}.pth" for index in range(7))}
    assert one == two


def test_eigenvectors_know_their_features(tmp_path, capsys):
    """After the features were redone otherwise, eigenvectors of the old ones are not mixed with new ones."""
    images = write_pictures(tmp_path / "images", 1)
    features, eigs = tmp_path / "features", tmp_path / "eigs"
    commands = [extract_features, extract_eigs]
    main(commands, features_flags(images, features))
    main(commands, eigs_flags(images, features, eigs))
    main(commands, [*features_flags(images, features), "--storage_dtype=float16", "--overwrite"])
    with pytest.raises(SystemExit, match="but with features.storage_dtype=float32 instead of float16;"):
        main(commands, eigs_flags(images, features, eigs))
    main(commands, [*eigs_flags(images, features, eigs), "--overwrite"])
    assert describe(eigs)["arguments"]["features"] == describe(features)["arguments"]
