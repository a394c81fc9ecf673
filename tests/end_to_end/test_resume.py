"""A run that is killed half-way and started again ends with the files of a run that was not."""

import signal
import time

import psutil
import pytest
import torch

from running import contents, run_here, start_extract
from shared_data import voc2007_images

pytestmark = pytest.mark.slow


def files(output):
    return list(output.glob("*.pth")) if output.is_dir() else []


def kill_on_the_way(flags, output, count):
    """Start a command, and kill it when it has written some of ``count`` files."""
    process = start_extract(*flags)
    while len(files(output)) < count // 4:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)  # its workers, if any, have to notice by themselves
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert count // 4 <= len(files(output)) < count


def check(flags, output, uninterrupted, ids, *, extra=()):
    """Kill, start again, and compare with the files of an uninterrupted run."""
    kill_on_the_way([*flags, f"--output_dir={output}", *extra], output, len(ids))
    before = {path: path.stat().st_mtime_ns for path in files(output)}
    run_here(*flags, f"--output_dir={output}", *extra)
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())
    run_here(*flags, f"--output_dir={uninterrupted}")
    expected, found = contents(uninterrupted), contents(output)
    assert found.keys() == expected.keys() == {"stage.json", *(f"{image_id}.pth" for image_id in ids)}
    assert [name for name in expected if found[name] != expected[name]] == []
    for path in files(output):
        assert torch.load(path, weights_only=True)["id"] == path.stem


def features_of(images, tmp_path, **flags):
    images_list = tmp_path / "images.txt"
    images_list.write_text("".join(f"{path.name}\n" for path in images))
    flags = {"images_list": images_list, "images_root": images[0].parent, "batch_size": 1, **flags}
    return ["extract_features", *(f"--{name}={value}" for name, value in flags.items())]


def test_features_of_a_vision_transformer(tmp_path):
    images = voc2007_images()[:40]
    flags = features_of(images, tmp_path, model_name="test_vit", weights="random")
    check(flags, tmp_path / "features", tmp_path / "uninterrupted", [path.stem for path in images])


def test_eigenvectors_in_two_processes(tmp_path):
    images = voc2007_images()[:50]
    features = tmp_path / "features"
    run_here(*features_of(images, tmp_path, model_name="lab_hog"), f"--output_dir={features}")
    flags = ["extract_eigs", f"--images_root={images[0].parent}", f"--features_dir={features}", "--K=5"]
    ids = [path.stem for path in images]
    check(flags, tmp_path / "eigs", tmp_path / "uninterrupted", ids, extra=["--multiprocessing=2"])
