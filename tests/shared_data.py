"""What the tests read from ../shared beside the project: recorded values, real images, stand-in weights.

The folder is not part of the project. Where it is absent, the tests that need it skip and say so.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]
SHARED = PROJECT.parent / "shared"
SAMPLES = PROJECT / "data" / "samples"


def shared() -> Path:
    """The folder ../shared, or skip."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}, which is not part of the project")
    return SHARED


def reference(name: str = "") -> Path:
    """A file of recorded values, e.g. ``features.npz`` or ``images/chelsea.png``; the folder itself without a name."""
    return _existing(shared() / "reference" / name)


def voc2007_images() -> list[Path]:
    """The 300 photographs of VOC2007 in ../shared, sorted."""
    return sorted(_existing(shared() / "data" / "VOC2007" / "VOCdevkit" / "VOC2007" / "JPEGImages").glob("*.jpg"))


def standin_weights(tmp_factory: pytest.TempPathFactory, model: str) -> Path:
    """A checkpoint in the published layout of ``model`` (dino_vits16, ...), built once per session.

    It holds the numbers that the recorded values were made with, and no visual knowledge.
    """
    script = reference("dino_like_weights.py")
    base = tmp_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the workers' folders lie side by side below the session's
        base = base.parent
    path = base / "standin" / f"{model}.pth"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        torch.save(_module(script).state_dict(model), temporary)
        temporary.replace(path)
    return path


def _module(script: Path):
    sys.path.insert(0, str(script.parent))
    try:
        return __import__(script.stem)
    finally:
        sys.path.remove(str(script.parent))


def _existing(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs {path}, which is not part of the project")
    return path
