"""EiCue inside autocast: its graph and its solver stay in float32."""

import pytest
import torch

from eagleseg.losses.eicue import eicue_eigenvectors
from spectralseg.errors import InputError
from spectralseg.mathematics import solvers


@pytest.mark.parametrize("colour", ["released", "rgb", "none"])
def test_eicue_ignores_autocast(colour: str, monkeypatch: pytest.MonkeyPatch):
    """In reduced precision the iteration would run to its limit without converging, and LAPACK follow."""
    torch.manual_seed(0)
    blobs = torch.nn.functional.avg_pool2d(torch.randn(2, 8, 14, 14), 5, 1, 2)
    code = torch.einsum("bchw,dc->bdhw", blobs, torch.randn(32, 8)) + 0.1 * torch.randn(2, 32, 14, 14)
    code, images = code.bfloat16(), torch.rand(2, 3, 56, 56)
    expected = eicue_eigenvectors(code, images, colour=colour)

    def refuse(*_: object) -> None:
        raise InputError("the iteration did not converge")

    monkeypatch.setattr(solvers, "dense_leading_eigenpairs", refuse)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = eicue_eigenvectors(code, images, colour=colour)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, expected)
