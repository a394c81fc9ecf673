"""A full disk, a read-only folder: one line says so, nothing is left half-written, and with space the run goes on."""

import resource
import sys
from functools import partial

import pytest

from running import (
    command_line,
    contents,
    eigs_flags,
    environment,
    features_flags,
    picture,
    run_command,
    write_pictures,
)
from shared_data import PROJECT
from spectralseg.commands.cli import extract_eigs, extract_features
from spectralseg.running.fire_app import main

COMMANDS = [extract_features, extract_eigs]


def limit_files(size):
    """No file may grow beyond ``size`` bytes, as if the disk were full then (Python ignores SIGXFSZ)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def images(tmp_path):
    """Three small images, the middle one with 1200 patches: 67 kB of features where the others have 1 kB."""
    folder = write_pictures(tmp_path / "images", 3)
    picture(1, 640, 480).save(folder / "image1.png")
    return folder


def test_features_on_a_full_disk(images, tmp_path):
    output = tmp_path / "features"
    flags = features_flags(images, output)
    before, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(20_000)
    try:
        with pytest.raises(SystemExit, match=f"^error: cannot write {output / 'image1.pth'}: File too large$"):
            main(COMMANDS, flags)
    finally:
        limit_files(before)
    before = contents(output)
    assert before.keys() == {"image0.pth", "stage.json"}

    main(COMMANDS, flags)  # with space
    after = contents(output)
    assert after.keys() == {"image0.pth", "image1.pth", "image2.pth", "stage.json"}
    assert after["image0.pth"] == before["image0.pth"]
    main(COMMANDS, features_flags(images, tmp_path / "uninterrupted"))
    assert after == contents(tmp_path / "uninterrupted")


@pytest.mark.slow
def test_eigenvectors_on_a_full_disk_in_processes(images, tmp_path):
    main(COMMANDS, features_flags(images, tmp_path / "features"))
    output = tmp_path / "eigs"
    flags = [*eigs_flags(images, tmp_path / "features", output), "--multiprocessing=2"]
    result = run_command(command_line(*flags), preexec_fn=partial(limit_files, 10_000))  # image1 needs 14 kB
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1] == f"error: cannot write {output / 'image1.pth'}: File too large"
    assert result.returncode == 1
    before = contents(output)
    assert "stage.json" in before
    assert before.keys() <= {"image0.pth", "image2.pth", "stage.json"}

    main(COMMANDS, flags)
    after = contents(output)
    assert after.keys() == {"image0.pth", "image1.pth", "image2.pth", "stage.json"}
    assert all(after[name] == content for name, content in before.items() if name != "stage.json")


@pytest.mark.parametrize("below", ["/proc", "file"])
def test_folders_that_cannot_be_made(below, images, tmp_path, capsys):
    (tmp_path / "file").write_text("a file")
    output = f"{tmp_path / below}/features"  # /proc stays /proc
    flags = [*features_flags(images, tmp_path / "features")[:-1], f"--output_dir={output}"]
    reason = "No such file or directory" if below == "/proc" else "Not a directory"
    with pytest.raises(SystemExit) as stop:
        main(COMMANDS, flags)
    assert stop.value.code == f"error: cannot create the folder {output}: {reason}"
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "file").read_text() == "a file"


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
ON_A_DISK_THAT_CHANGES = """
import shutil, subprocess, sys
from spectralseg.commands import cli
disk, report, *flags = sys.argv[1:]
for name, options, more in (
    ("full", "size=40k", []),
    ("space", "remount,size=40m", []),
    ("again", "remount,ro", []),
    ("overwrite", "remount,ro", ["--overwrite"]),
):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
    try:
        cli.main([*flags, *more])
        print("done")
    except SystemExit as stop:
        print(stop)
    shutil.copytree(f"{disk}/features", f"{report}/{name}")
"""


@pytest.mark.slow
def test_a_small_file_system_that_grows_and_becomes_read_only(images, tmp_path):
    try:
        reason = run_command([*NAMESPACE, "sh", "-c", "mount -t tmpfs none /mnt"]).stderr.strip()
    except FileNotFoundError:
        reason = "there is no unshare"
    if reason:
        pytest.skip(f"file systems cannot be mounted here: {reason}")
    disk, report = tmp_path / "disk", tmp_path / "report"
    disk.mkdir()
    report.mkdir()
    features = disk / "features"
    flags = [*features_flags(images, tmp_path / "features")[:-1], f"--output_dir={features}"]
    path = {"PYTHONPATH": str(PROJECT / "extract")}
    script = [*NAMESPACE, sys.executable, "-c", ON_A_DISK_THAT_CHANGES]
    result = run_command([*script, disk, report, *flags], env=environment(**path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"error: cannot write {features / 'image1.pth'}: No space left on device",
        "done",
        f"error: cannot write {features / 'stage.json'}: Read-only file system",
        f"error: cannot delete {features / 'image0.pth'}: Read-only file system",
    ]
    assert contents(report / "full").keys() == {"image0.pth", "stage.json"}
    whole = contents(report / "space")
    assert whole.keys() == {"image0.pth", "image1.pth", "image2.pth", "stage.json"}
    assert whole["image0.pth"] == contents(report / "full")["image0.pth"]
    assert contents(report / "again") == contents(report / "overwrite") == whole
