"""Graphs whose affinities are never held: equal to the dense solution, near it by landmarks, and joint over images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from running import as_flags, contents, features_flags, refused_here, run_here, write_pictures
from spectralseg.errors import InputError
from spectralseg.mathematics.affinity import feature_affinity
from spectralseg.mathematics.eigen import normalised_cut, spectral_eigenvectors
from spectralseg.mathematics.landmarks import BlockedAffinity, blocked_cut, landmark_cut


def groups(count: int, parts: int = 5, noise: float = 0.4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(parts, 16, generator=draw)
    return functional.normalize(
        centres[torch.arange(count) % parts] + noise * torch.randn(count, 16, generator=draw), dim=1
    )


@pytest.mark.parametrize("threshold", [True, False])
def test_rows_at_a_time_give_the_whole_product(threshold):
    features, block = groups(1100), torch.randn(1100, 3, generator=torch.Generator().manual_seed(1))
    scale = torch.rand(1100, 1, generator=torch.Generator().manual_seed(2))
    expected = scale * (feature_affinity(features, threshold) @ (scale * block))
    torch.testing.assert_close(BlockedAffinity(features, threshold, scale)(block), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("threshold", [True, False])
def test_blocks_and_all_landmarks_are_exact(threshold):
    features = groups(700) + (0.5 if not threshold else 0.0)  # so that no degree cancels
    expected, x, D = normalised_cut(feature_affinity(features, threshold), 5, features)
    for values, vectors in (blocked_cut(features, 5, threshold, 5e-6), landmark_cut(features, 5, threshold, 700)):
        torch.testing.assert_close(values, expected, atol=2e-4, rtol=0)
        torch.testing.assert_close(vectors.mT @ (D[:, None] * vectors), torch.eye(5), atol=1e-3, rtol=0)
        overlap = torch.linalg.svdvals(x.mT @ (D[:, None] * vectors))
        torch.testing.assert_close(overlap, torch.ones(5), atol=1e-3, rtol=0)


def test_few_landmarks_come_near():
    features = groups(2000)
    _, x, D = normalised_cut(feature_affinity(features), 5, features)
    values, vectors = landmark_cut(features, 5, True, 200)
    assert (values[0].abs() < 1e-6) & (values.diff() > 0).all()
    assert torch.linalg.svdvals(x.mT @ (D[:, None] * vectors)).min() > 0.99


def test_what_they_are_not_for():
    features = groups(60)
    for solver in ("blocked", "landmarks"):
        for other in ({"which_matrix": "affinity"}, {"lapnorm": False}):
            with pytest.raises(InputError, match=f"solver={solver} is for laplacian with lapnorm"):
                spectral_eigenvectors(features, 3, solver=solver, **other)
        values, vectors = spectral_eigenvectors(features[None], 3, solver=solver)
        torch.testing.assert_close(values[0], spectral_eigenvectors(features, 3)[0], atol=2e-4, rtol=0)
        assert vectors.shape == (1, 3, 60)
    with pytest.raises(InputError, match="have rank 1"):
        landmark_cut(torch.ones(9, 2), 3, True)


@pytest.mark.parametrize("solver", ["auto", "landmarks"])
def test_one_graph_of_several_images(solver, tmp_path, capsys):
    """Two halves of one picture, as images of their own, get the eigenvectors and segments of the whole's patches."""
    pixels = np.asarray(Image.open(write_pictures(tmp_path / "whole", 1, width=160, height=128) / "image0.png"))
    (tmp_path / "images").mkdir()
    for name, part in (("a", pixels[:64]), ("b", pixels[64:])):
        Image.fromarray(part).save(tmp_path / "images" / f"{name}.png")
    run_here(*features_flags(tmp_path / "images", tmp_path / "features"))
    made = {"images_root": tmp_path / "images", "features_dir": tmp_path / "features", "K": 4, "solver": solver}
    run_here("extract_eigs", "--joint", *as_flags(**made, output_dir=tmp_path / "eigs"))
    records = [torch.load(tmp_path / "eigs" / f"{name}.pth", weights_only=True) for name in "ab"]
    keys = [torch.load(tmp_path / "features" / f"{name}.pth", weights_only=True)["k"][0] for name in "ab"]
    values, vectors = spectral_eigenvectors(torch.cat(keys), 4, solver=solver)
    for record, part in zip(records, vectors.split(40, dim=1), strict=True):
        torch.testing.assert_close(record["eigenvectors"], part)
        torch.testing.assert_close(record["eigenvalues"], values)
    both = {"features_dir": tmp_path / "features", "eigs_dir": tmp_path / "eigs", "output_dir": tmp_path / "segments"}
    run_here("extract_multi_region_segmentations", **both)
    maps = [np.array(Image.open(tmp_path / "segments" / f"{name}.png")) for name in "ab"]
    assert set(np.unique(maps)) == {0, 1, 2, 3}
    centres = [
        np.concatenate([vectors[1:, :40].T[maps[0].ravel() == n], vectors[1:, 40:].T[maps[1].ravel() == n]]).mean(0)
        for n in range(4)
    ]
    points = np.concatenate([part[1:].T for part in vectors.split(40, dim=1)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.concatenate([part.ravel() for part in maps]))
    before = contents(tmp_path / "eigs"), contents(tmp_path / "segments")
    (tmp_path / "eigs" / "b.pth").unlink()
    (tmp_path / "segments" / "a.png").unlink()
    run_here("extract_eigs", "--joint", *as_flags(**made, output_dir=tmp_path / "eigs"))
    run_here("extract_multi_region_segmentations", **both)
    assert (contents(tmp_path / "eigs"), contents(tmp_path / "segments")) == before
    assert "without colour" in refused_here(
        capsys, "extract_eigs", "--joint", **made, image_color_lambda=1, output_dir=tmp_path / "x"
    )
