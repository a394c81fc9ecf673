"""Checkpoints of backbones: where they come from, and how their tensors get into a model."""

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import torch
from torch import Tensor, nn

from spectralseg.errors import InputError, OutputError, some_of
from spectralseg.files.downloads import TIMEOUT_SECONDS, fetch
from spectralseg.files.inert import read_inert
from spectralseg.files.storage import atomic_write, remove

WRAPPERS = ("teacher", "student", "state_dict", "model", "model_ema")
HUB_ADDRESSES = ("https://dl.fbaipublicfiles.com/", "https://download.pytorch.org/")  # kept as torch.hub keeps them
PREFIXES = ("module.", "backbone.", "_orig_mod.")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, without executing anything from the file.

    Accepted are safetensors, bare state dicts, and training checkpoints that hold one under ``teacher`` (preferred),
    ``student``, ``state_dict`` or ``model``, with ``module.`` and ``backbone.`` before the names (DINO's and timm's
    layouts).

    Raises
    ------
    InputError
        No such file, not a checkpoint, damaged, or without tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such weights file: {path}")
    advice = "it may be damaged or incomplete"
    advice += "; delete it, and it is downloaded again" if path.parent == downloads_folder() else ""
    content: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            content = load_file(path)
        except Exception as error:  # a different type for each kind of damage
            raise InputError(f"{path} cannot be read ({type(error).__name__}); {advice}") from error
    else:
        content = read_inert(path, advice, ["argparse.Namespace"])  # DINO's full checkpoints carry their options
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    tensors = {_bare(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors (found: {', '.join(map(str, list(content)[:5]))})")
    return tensors


def _bare(name: str) -> str:
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    return name


def load_into(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str | Path, leave_out: tuple[str, ...] = ()
) -> None:
    """Copy ``tensors`` of the file ``source`` into ``model``, but for those whose names begin as in ``leave_out``.

    Raises
    ------
    InputError
        Names the tensors that are missing, unknown or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(leave_out)}
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} {tuple(value.shape)} instead of {expected[name]}"
        for name, value in tensors.items()
        if name in expected and tuple(value.shape) != expected[name]
    ]
    problems = [
        f"{label} {some_of(names)}"
        for label, names in (("missing", missing), ("wrong shape", wrong), ("unknown", unknown))
        if names
    ]
    if problems:
        raise InputError(f"{source} does not fit this model: {'; '.join(problems)}")
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"{source} holds NaN or infinite values in {some_of(broken)}")
    model.load_state_dict(tensors)


def fingerprint(path: str | Path) -> str:
    """``<file name> sha256:<12 digits>``: what a stage records of a weights file, wherever it lies."""
    return f"{Path(path).name} sha256:{sha256(path)[:12]}"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def local_file(weights: str) -> Path:
    """``weights`` itself if it is a path, what :func:`download` fetches if it is an address; errors as there."""
    if "://" not in weights:
        return Path(weights)
    try:
        return download(weights)
    except InputError as error:
        raise InputError(f"{error}; download it elsewhere and give its path as the weights") from error


def downloads_folder() -> Path:
    """Where checkpoints are kept: torch.hub's folder."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def download(url: str) -> Path:
    """Fetch a checkpoint once into torch.hub's folder; later calls return the file that is there.

    ``url`` may be http(s):// or file://. The file is checked (complete, readable as a checkpoint) before it is kept.
    Its SHA-256 is kept beside it, in ``<name>.sha256``, and compared whenever the file is asked for.

    Raises
    ------
    InputError
        No network, no such address, the connection broke off, or what came is no checkpoint; the message names ``url``.
        The file that is there was cut off or changed.
    OutputError
        The file cannot be written.
    """
    folder = downloads_folder()
    name = os.path.basename(url.partition("?")[0])
    if not url.startswith(HUB_ADDRESSES):  # other people's files may share a name
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    target, digest = folder / name, folder / f"{name}.sha256"
    if target.is_file():
        if digest.is_file() and digest.read_text().split() != [sha256(target)]:
            raise InputError(f"{target} is not as it was downloaded (cut off, or changed); delete it and start again")
        return target
    # Processes that start together fetch a file each, so that none goes on with what another has begun.
    try:
        incoming = fetch(url, folder / f"incoming-{os.getpid()}-{name}", resume=False)
    except OutputError as error:
        raise OutputError(f"{error}; set TORCH_HOME to a folder of yours, or give a file as the weights") from error
    try:
        read_checkpoint(incoming)
        with atomic_write(digest) as file:
            file.write(sha256(incoming).encode())
        os.replace(incoming, target)
    except InputError as error:
        raise InputError(f"cannot download {url}: what came is no checkpoint") from error
    finally:
        remove(incoming)
    return target


@contextlib.contextmanager
def hub_without_retries() -> Iterator[None]:
    """Where timm's hub cannot be reached, look into its cache alone: huggingface_hub would retry for a minute."""
    before = hub_constants.HF_HUB_OFFLINE
    if not before:
        hub_constants.HF_HUB_OFFLINE = not _is_reachable(hub_constants.ENDPOINT)
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = before


def _is_reachable(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it answers
    except (OSError, http.client.HTTPException):
        return False
    return True
