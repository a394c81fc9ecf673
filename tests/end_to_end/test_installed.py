"""The package as pip installs it, built from what git holds: in an environment of its own, from a folder of nothing."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from running import EXTRACT, contents, run_command, run_script_here, write_pictures
from shared_data import PROJECT, SAMPLES

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
pytestmark = pytest.mark.slow
PACKAGE = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
SHOW_ALL = """
import sys
from importlib import import_module
from importlib.metadata import distribution

for command in distribution("spectralseg").entry_points:
    module = import_module(*command.load().args)
    has_config = getattr(getattr(module, "run", None), "__module__", "") == "spectralseg.running.hydra_app"
    for flags in ["--help"], ["--cfg", "job", "--resolve"]:
        if flags == ["--help"] or has_config:
            print("<<<", command.name, *flags)
            try:
                module.main(flags)
            except SystemExit as stop:
                assert not stop.code, stop.code
"""


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the console commands of an environment that has the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("installed")
    archive = run_command(["git", "archive", "--format=tar", "HEAD"], cwd=PROJECT, text=False)
    if archive.returncode:
        pytest.skip("no git checkout here")
    (folder / "source.tar").write_bytes(archive.stdout)
    with tarfile.open(folder / "source.tar") as source:
        source.extractall(folder / "source", filter="data")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"]
    built = run_command(build)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    assert list((folder / "dist").glob("*.tar.gz"))
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel]
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # pip would find us there
    subprocess.run([str(word) for word in pip], check=True, env=elsewhere)
    packages = folder / "venv" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    return python.parent


@pytest.fixture
def run_installed(installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a console command in an empty folder."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return run_command([installed / name, *arguments], cwd=tmp_path)

    return run


def test_requirements_say_the_same():
    lines = [line for line in (PROJECT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines == [*PACKAGE["dependencies"], "-e ."]


def test_every_console_command_has_its_help_and_its_config(run_installed, installed: Path, tmp_path: Path):
    """All in one process, which has imported torch once."""
    assert all((installed / name).is_file() for name in PACKAGE["scripts"])
    shown = run_installed("python", "-c", SHOW_ALL)
    assert shown.returncode == 0, shown.stderr
    pages = dict(page.split("\n", 1) for page in shown.stdout.split("<<< ")[1:])
    configs = [page for command, page in pages.items() if command.endswith("--resolve")]
    assert (len(pages) - len(configs), len(configs)) == (len(PACKAGE["scripts"]), 7)
    assert all(len(page.splitlines()) > 10 for page in pages.values())
    paths = [path for page in configs for path in re.findall(r": (/\S+)", page)]
    assert paths
    assert not [path for path in paths if not path.startswith(str(tmp_path))]  # below the current folder


def test_command_and_script_write_the_same_files(run_installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = write_pictures(tmp_path / "photographs", 2)
    flags = ["run", "--images", images, "--model_name", "lab_hog", "--output"]
    by_command = run_installed("spectralseg", *flags, "by_command")
    assert by_command.returncode == 0, by_command.stderr
    run_script_here(monkeypatch, EXTRACT, *flags, tmp_path / "by_script")
    for folder in ("eigs", "masks", "cutouts", "single_region_segmentation/crf"):
        first = contents(tmp_path / "by_command" / folder, ".pth") or contents(tmp_path / "by_command" / folder, ".png")
        second = contents(tmp_path / "by_script" / folder)
        assert len(first) == 2
        assert first == {name: second[name] for name in first}


def test_masks_are_evaluated(run_installed, tmp_path: Path):
    entry = "{name: samples, images_dir: images, labels_dir: masks}"
    roots = [f"data_root={SAMPLES}", f"predictions.root={SAMPLES.parent}", "predictions.run=masks"]
    done = run_installed("spectralseg-object-segmentation", *roots, f"data=[{entry}]")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("outputs/**/results.json"))
