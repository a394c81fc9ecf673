"""Augmentation: image and labels stay together, and the seed decides."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from semanticseg.augment import Augmentation, seed_of


def marked(height: int = 90, width: int = 120) -> tuple[Image.Image, np.ndarray]:
    """Left half white and labelled 1, right half black and labelled 2."""
    labels = np.ones((height, width), np.uint8)
    labels[:, width // 2 :] = 2
    return Image.fromarray(np.where(labels == 1, 255, 0).astype(np.uint8)).convert("RGB"), labels


@settings(max_examples=40)
@given(st.integers(0, 2**62))
@example(232)  # little contrast: black becomes 78
def test_labels_follow_the_image(seed: int):
    image, labels = Augmentation(64, 48)(*marked(), seed)
    assert image.shape == (3, 48, 48)
    assert labels.shape == (48, 48)
    assert (image.dtype, labels.dtype) == (torch.uint8, torch.uint8)
    assert set(labels.unique().tolist()) <= {1, 2}  # nearest neighbour invents no label
    brightness = image.float().mean(dim=0)
    border = torch.zeros_like(labels, dtype=torch.bool)
    border[:, 1:] = labels[:, 1:] != labels[:, :-1]
    near = torch.nn.functional.max_pool2d(border[None].float(), 19, 1, 9)[0] > 0  # bicubic and blurred there
    white, black = (brightness[(labels == label) & ~near] for label in (1, 2))
    kept = 0.6 * 0.6 * 255 - 3  # what jitter leaves of their difference, however it lifts black; and of white alone
    if len(white) and len(black):
        assert white.min() - black.max() > kept
    else:  # medians: the border may lie just outside
        assert (white.median() > kept) if len(white) else (black.median() < kept)


def test_the_seed_decides():
    augmentation = Augmentation(64, 48)
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    labels = random.integers(0, 21, (90, 120), dtype=np.uint8)
    before = torch.random.get_rng_state()
    first, again, other = (augmentation(image, labels, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_every_step_happens():
    """Over many seeds: flips, grey and colour all occur, and about as often as they should."""
    augmentation = Augmentation(48, 48)
    image, labels = marked(48, 96)
    coloured = Image.merge(
        "RGB", (image.getchannel(0), image.getchannel(0).point(lambda v: v // 2), image.getchannel(2))
    )
    views = [augmentation(coloured, labels, seed) for seed in range(200)]
    grey = np.mean([torch.equal(view[0], view[1]) and torch.equal(view[1], view[2]) for view, _ in views])
    assert 0.1 < grey < 0.32  # 0.2, and dark views, which have no colour
    both = [labels for _, labels in views if len(labels.unique()) == 2]
    flipped = np.mean([int(labels[0, 0]) == 2 for labels in both])
    assert 0.3 < flipped < 0.7


def test_seeds_of_several_numbers():
    seeds = {seed_of(seed, epoch, index) for seed in range(3) for epoch in range(10) for index in range(100)}
    assert len(seeds) == 3000
    assert seed_of(1, 2) != seed_of(2, 1)
    assert all(0 <= seed < 2**63 for seed in seeds)
