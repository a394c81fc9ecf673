"""What users are told, in one line that says what to do, where a result would be missing or wrong."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eagleseg.commands import demo, evaluate
from running import extracted, refused_here, run_here, start_command, write_pictures
from shared_data import PROJECT
from spectralseg.api import Segmenter
from spectralseg.errors import InputError

RUN = "run --images {0}/images --model_name lab_hog --output {0}/"
FROM_EIGS = "--features_dir {0}/out/features --eigs_dir {0}/out/eigs --output_dir {0}/"
SEGMENTS = "extract_multi_region_segmentations " + FROM_EIGS
IMAGES = "--images_list {0}/out/features.txt --images_root {0}/images "
MAPS = IMAGES + "--segmentations_dir {0}/segments --output_dir {0}/new"
BOXES = "extract_bboxes --segmentations_dir {0}/segments --output_file {0}/new.pth --features_dir {0}/out/features"
EIGS = "extract_eigs --images_root {0}/images --features_dir {0}/out/features --output_dir {0}/"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with photographs, and what some stages and ``run`` made of them."""
    root = tmp_path_factory.mktemp("messages")
    images = write_pictures(root / "images", 2)
    extracted(images, root / "out")
    finer = "extract_features --model_name lab_hog8 --output_dir {0}/finer " + IMAGES
    for command in (SEGMENTS + "segments", RUN + "done", finer):
        run_here(*command.format(root).split())
    (root / "folder" / "image0.pth").mkdir(parents=True)
    torch.save({f"layer{number}": torch.zeros(2) for number in range(200)}, root / "wrong.pth")
    return str(root)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (RUN + "images", "the photographs of {0}/images lie in the output folder {0}/images; name another one"),
        (RUN + "done --nocrf", "{0}/done holds a run with the CRF: leave --nocrf out, choose another"),
        (RUN + "new --K 500", "K=500 eigenvectors of 20 patches with 14 features: ask for 1 to 20\n"),
        (RUN + "new --K 500", "none of the photographs could be handled"),
        (RUN + "none --model_name dino_vits61", "no backbone 'dino_vits61' (did you mean dino_vits16?)"),
        (RUN + "none --device cuda:77", "no device 'cuda:77' here"),
        (RUN + "none --model_name dino_vits16 --weights {0}/none.pth", "no such weights file: {0}/none.pth"),
        (RUN.replace("output {0}/", "output="), "--output needs a value"),
        (EIGS + "new --colour 10", "(did you mean --which_color_matrix or --image_color_lambda or --color_grid?)"),
        (EIGS + "folder", "{0}/folder/image0.pth is a folder, where a result belongs; move it away"),
        (BOXES + " --downsample_factor 8", "{0}/segments was made with 16: give that number"),
        ("extract_crf_segmentations --downsample_factor 8 " + MAPS, "{0}/segments was made with 16: give that number"),
        ("extract_mattes --downsample_factor 8 " + MAPS, "{0}/segments was made with 16: give that number"),
        (BOXES.replace("out/features", "finer"), "with model_name=lab_hog instead of lab_hog8, patch"),
        (SEGMENTS.replace("out/features", "finer") + "new", "{0}/out/eigs was made from other features than those in"),
        ("extract_bbox_clusters --bbox_features_file {0}/out --output_file {0}/new.pth", "{0}/out is a folder, not"),
    ],
)
def test_one_line_says_what_to_do(command: str, message: str, root: str, capsys: pytest.CaptureFixture[str]):
    assert message.format(root) in refused_here(capsys, *command.format(root).split())
    assert not Path(root, "none").exists()


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (evaluate.main, [], "model_path: must be given, as model_path=... (--help explains)"),
        (evaluate.main, ["model_path=null"], "model_path needs a checkpoint, or a list of them"),
        (demo.main, [], "image_dir, model_path: must be given, as image_dir=... (--help explains)"),
        (evaluate.main, ["model_path={0}/wrong.pth"], "(it has: layer0, layer1, layer10, layer100,"),
    ],
)
def test_eagle_says_what_it_lacks(main, arguments: list[str], message: str, root: str):
    with pytest.raises(SystemExit) as stop:
        main([argument.format(root) for argument in arguments])
    assert message in stop.value.code
    assert len(stop.value.code) < 300


def test_what_run_takes_for_photographs(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A single one; no results of an earlier run; those of unknown formats, and those that are gone, are named."""
    photographs = Path(shutil.copytree(Path(root, "images"), tmp_path / "photographs"))
    (photographs / "a.heic").touch()
    run = ("run", "--model_name", "lab_hog", "--nocrf", "--images")
    run_here(*run, photographs / "image0.png", "--output", photographs / "first")
    assert [path.name for path in (photographs / "first" / "cutouts").iterdir()] == ["image0.png"]
    (photographs / "image0.png").rename(photographs / "image9.png")
    capsys.readouterr()
    run_here(*run, photographs, "--output", photographs / "second")
    (photographs / "image9.png").unlink()
    run_here(*run, photographs, "--output", photographs / "second")
    said = capsys.readouterr().err
    assert "run: 6 images are results of earlier runs, left out: first/cutouts/image0.png, first/images/" in said
    assert f"1 photographs of {photographs} are left out: a.heic; their formats are not read" in said
    assert "run: masks and cutouts hold 1 whose photographs are gone: image9" in said
    results = json.loads((photographs / "second" / "results.json").read_text())["images"]
    assert [result["id"] for result in results] == ["image1"]


def test_the_function_takes_what_it_can_see(root: str):
    path, segment = Path(root, "images", "image0.png"), Segmenter("lab_hog")
    pixels = np.asarray(Image.open(path))
    expected = segment(Image.open(path)).mask
    assert 0 < expected.mean() < 1
    for same in (path, str(path), pixels):
        np.testing.assert_array_equal(segment(same).mask, expected)
    grey = pixels[..., 0].astype(np.uint16)
    deep, flat = segment(Image.fromarray(grey * 257)), segment(grey.astype(np.uint8))
    np.testing.assert_array_equal(deep.mask, flat.mask)  # not clipped
    for wrong in (pixels / 255, [pixels / 255], torch.ones(8, 8, 3), None, pixels[None], pixels[:0]):
        with pytest.raises(InputError, match=r"^no picture: .* an array of uint8 of shape"):
            segment(wrong)


def test_ctrl_c_and_sigterm_end_at_once(root: str):
    script = start_command([sys.executable, PROJECT / "eagle" / "eval_segmentation.py"])
    time.sleep(0.4)  # it imports for seconds
    script.send_signal(signal.SIGINT)
    assert "Traceback" not in script.communicate(timeout=60)[1]
    code = (
        "import time\nfrom spectralseg.running.workers import loader\n"
        "class Slow(list):\n    def __getitem__(self, index):\n        time.sleep(index * 600)\n        return index\n"
        "with loader(Slow(range(8)), 2, batch_size=None) as items:\n    [print(item, flush=True) for item in items]\n"
    )
    parent = start_command([sys.executable, "-c", code])
    assert parent.stdout.readline() == "0\n"
    parent.terminate()
    started = time.monotonic()
    assert "Traceback" not in parent.communicate(timeout=60)[1]  # its processes hold the pipe until they end
    assert time.monotonic() - started < 4  # torch's look every five seconds
