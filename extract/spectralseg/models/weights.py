"""Checkpoints of backbones: where they come from, and how their tensors get into a model."""

import argparse
import contextlib
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import huggingface_hub.constants as hub_constants
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spectralseg.errors import InputError
from spectralseg.files.storage import atomic_write, make_folder

TIMEOUT_SECONDS = 20
WRAPPERS = ("teacher", "student", "state_dict", "model", "model_ema")
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
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # DINO's full checkpoints carry their options
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a different type for each kind of damage
        raise InputError(
            f"{path} is no readable checkpoint ({type(error).__name__}: damaged or incomplete?)"
        ) from error
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


def load_into(model: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Copy ``tensors`` into ``model``; classifier and projection heads of the checkpoint (``head.*``) are left out.

    Raises
    ------
    InputError
        Names the tensors that are missing, unknown or of another shape.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tensors = {name: value for name, value in tensors.items() if not name.startswith(("head.", "mask_token"))}
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} {tuple(value.shape)} instead of {expected[name]}"
        for name, value in tensors.items()
        if name in expected and tuple(value.shape) != expected[name]
    ]
    problems = [
        f"{label} {_first(names)}"
        for label, names in (("missing", missing), ("wrong shape", wrong), ("unknown", unknown))
        if names
    ]
    if problems:
        raise InputError(f"{source} does not fit this backbone: {'; '.join(problems)}")
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"{source} holds NaN or infinite values in {_first(broken)}")
    model.load_state_dict(tensors)


def _first(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def fingerprint(path: str | Path) -> str:
    """``<file name> sha256:<12 digits>``: what a stage records of a weights file, wherever it lies."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return f"{Path(path).name} sha256:{digest.hexdigest()[:12]}"


def download(url: str) -> Path:
    """Fetch a checkpoint once into torch.hub's folder; later calls return the file that is there.

    ``url`` may be http(s):// or file://. The file is checked (complete, readable as a checkpoint) before it is kept.

    Raises
    ------
    ConnectionError
        No network, no such address, the connection broke off, or what came is no checkpoint; the message names ``url``.
    OutputError
        The file cannot be written.
    """
    folder = make_folder(Path(torch.hub.get_dir()) / "checkpoints")
    name = os.path.basename(url.partition("?")[0])
    if "dl.fbaipublicfiles.com" not in url:  # other people's files may share a name
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    target = folder / name
    if target.is_file():
        return target
    incoming = folder / f"incoming-{os.getpid()}-{name}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, atomic_write(incoming) as file:
            length = response.headers.get("Content-Length")  # None where the server does not tell
            total = None if length is None else int(length)
            with tqdm(total=total, unit="B", unit_scale=True, desc=f"downloading {name}", file=sys.stderr) as bar:
                for chunk in chunks(response, total):
                    file.write(chunk)
                    bar.update(len(chunk))
        read_checkpoint(incoming)
        os.replace(incoming, target)
    except InputError as error:
        raise ConnectionError(f"{url}: what came is no checkpoint") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        raise ConnectionError(f"{url}: {getattr(error, 'reason', error)}") from error
    finally:
        incoming.unlink(missing_ok=True)
    return target


def chunks(response: BinaryIO, total: int | None) -> Iterator[bytes]:
    """The ``total`` bytes of a response (None: unknown), a megabyte at a time.

    Where it breaks off, an HTTPException is raised: an OSError would look like a full disk.
    """
    received = 0
    try:
        while chunk := response.read(1 << 20):
            received += len(chunk)
            yield chunk
    except OSError as error:
        raise http.client.HTTPException(f"the connection broke off after {received} bytes ({error})") from error
    if total is not None and received != total:
        raise http.client.HTTPException(f"the connection broke off after {received} of {total} bytes")


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
