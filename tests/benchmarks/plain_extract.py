"""A plain implementation of the published method, to measure `spectralseg` against.

Melas-Kyriazi, Rupprecht, Laina, Vedaldi, "Deep Spectral Methods", CVPR 2022 (arXiv 2205.07839), done the
way the published code does it and with none of this project's library: one image at a time, in float32,
attention written out, the network run to its end with a hook on the last block's `qkv`; then dense matrices
and ARPACK in shift-invert mode at exactly 0. `test_plain_extract.py` holds it against recorded values.
"""

from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

TIMM_NAMES = {
    "dino_vits16": "vit_small_patch16_224",
    "dino_vits8": "vit_small_patch8_224",
    "dino_vitb16": "vit_base_patch16_224",
    "dino_vitb8": "vit_base_patch8_224",
}
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class WrittenOutAttention(nn.Module):
    """Softmax attention that keeps the whole (heads, tokens, tokens) matrix; takes over the layers of timm's."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = attention.qkv, attention.proj, attention.num_heads

    def forward(self, x: Tensor, **_: object) -> Tensor:
        """Attend: (B, N, D) -> (B, N, D)."""
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1)) * (D // self.num_heads) ** -0.5
        attention = attention.softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(B, N, D))


def load_model(weights_path: str | Path, name: str) -> nn.Module:
    """Build a DINO v1 ViT and fill it from a bare checkpoint in the published layout.

    Parameters
    ----------
    weights_path : path of a state dict.
    name : one of `TIMM_NAMES`.

    Returns
    -------
    timm's VisionTransformer in evaluation mode, on the CPU, with written-out attention.
    """
    import timm  # slow, and for this alone

    model = timm.create_model(TIMM_NAMES[name], pretrained=False, num_classes=0)
    model.load_state_dict(torch.load(weights_path, weights_only=True))
    for block in model.blocks:
        block.attn = WrittenOutAttention(block.attn)
    return model.eval()


def position_embedding(model: nn.Module, rows: int, columns: int) -> Tensor:
    """Resize the position embeddings as DINO v1 does: (1, 1 + G*G, D) -> (1, 1 + rows*columns, D).

    Bicubic without antialiasing; the scale factor (rows + 0.1) / G itself sets the sampling positions.
    """
    G = int((model.pos_embed.shape[1] - 1) ** 0.5)
    if (rows, columns) == (G, G):
        return model.pos_embed
    cls_token, patches = model.pos_embed[:, :1], model.pos_embed[:, 1:]
    grid = patches.reshape(1, G, G, -1).permute(0, 3, 1, 2)
    factor = ((rows + 0.1) / G, (columns + 0.1) / G)
    grid = F.interpolate(grid, scale_factor=factor, mode="bicubic", recompute_scale_factor=False)
    return torch.cat((cls_token, grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)), dim=1)


def load_image(image_path: str | Path) -> Tensor:
    """Decode a file to float32 RGB in [0, 1], shape (3, H, W)."""
    return torch.from_numpy(np.array(Image.open(image_path).convert("RGB"))).permute(2, 0, 1) / 255


@torch.no_grad()
def plain_keys(model: nn.Module, image: Tensor) -> Tensor:
    """Keys of the last block for one image.

    Parameters
    ----------
    image : (3, H, W) float32 RGB in [0, 1]; cropped at the right and bottom to whole patches.

    Returns
    -------
    (1, T, D) float32, T = (H // P) * (W // P) in row-major order, heads joined, [CLS] dropped.
    """
    P = model.patch_embed.patch_size[0]
    rows, columns = image.shape[1] // P, image.shape[2] // P
    image = (image[:, : rows * P, : columns * P] - IMAGENET_MEAN) / IMAGENET_STD

    seen = {}
    hook = model.blocks[-1].attn.qkv.register_forward_hook(lambda _module, _inputs, output: seen.update(qkv=output))
    try:
        x = model.patch_embed.proj(image[None]).flatten(2).transpose(1, 2)
        x = torch.cat((model.cls_token, x), dim=1) + position_embedding(model, rows, columns)
        for block in model.blocks:
            x = block(x)
        model.norm(x)
    finally:
        hook.remove()
    _, k, _ = seen["qkv"].chunk(3, dim=-1)
    return k[:, 1:].clone()


def plain_features(model: nn.Module, image_path: str | Path) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Decode one image and compute its keys: ((1, T, D) float32, (1, 3, H, W) before cropping)."""
    image = load_image(image_path)
    return plain_keys(model, image), (1, *image.shape)


def knn_colour_affinity(image: np.ndarray) -> scipy.sparse.csr_array:
    """Colour affinity by nearest neighbours (Chen, Li, Tang, "KNN Matting", 2013), as the published code uses it.

    Parameters
    ----------
    image : (h, w, 3) RGB in [0, 1].

    Returns
    -------
    (h*w, h*w) sparse: every directed edge of two kNN graphs over (r, g, b, weight*x, weight*y), with (20
    neighbours, weight 2) and (10, 0.1), adds 1 to W_ij and to W_ji. Each point is its own nearest
    neighbour. Distances are float32: that decides ties as in the recorded values (one in chelsea's moves l by 1e-4).
    """
    h, w = image.shape[:2]
    y, x = np.meshgrid(np.linspace(0, 1, h), np.linspace(0, 1, w), indexing="ij")
    i, j = [], []
    for neighbours, weight in ((20, 2.0), (10, 0.1)):
        coordinates = (*image.reshape(-1, 3).T, weight * x.ravel(), weight * y.ravel())
        distances = sum((c[:, None] - c) ** 2 for c in np.asarray(coordinates, np.float32))
        i.append(np.repeat(np.arange(h * w), neighbours))
        j.append(distances.argsort(axis=1, kind="stable")[:, :neighbours].ravel())
    i, j = np.concatenate(i), np.concatenate(j)
    ones = np.ones(2 * len(i))
    return scipy.sparse.csr_array((ones, (np.append(i, j), np.append(j, i))), shape=(h * w, h * w))


def plain_eigs(k: Tensor, K: int, colour: scipy.sparse.csr_array | None = None) -> tuple[np.ndarray, np.ndarray, bool]:
    """The K smallest solutions of (D - W) x = l D x, by shift-invert at 0 on dense matrices.

    Parameters
    ----------
    k : (1, T, D) or (T, D) features.
    K : number of eigenpairs.
    colour : optional (T, T) colour affinity, already multiplied by its weight, added to W.

    Returns
    -------
    eigenvalues : (K,) ascending.
    eigenvectors : (K, T), each with x'Dx = 1, negated if 0.5 < mean(x > 0) < 1.
    fell_back : whether the factorisation failed, so that the slow path (`which="SM"`) was taken.
    """
    features = F.normalize(k.reshape(-1, k.shape[-1]), dim=-1)
    W = features @ features.T
    W = W * (W > 0)
    W = (W / W.max()).numpy()
    if colour is not None:
        W = W + colour.toarray()
    degrees = W.sum(axis=1)
    degrees[degrees < 1e-12] = 1
    D = np.diag(degrees)

    fell_back = False
    try:
        eigenvalues, eigenvectors = scipy.sparse.linalg.eigsh(D - W, k=K, sigma=0, which="LM", M=D)
    except (RuntimeError, ValueError, np.linalg.LinAlgError):  # D - W is singular: ArpackError, inf from the LU, ...
        fell_back = True
        eigenvalues, eigenvectors = scipy.sparse.linalg.eigsh(D - W, k=K, which="SM", M=D)

    eigenvectors = eigenvectors.T.copy()
    for x in eigenvectors:
        if 0.5 < np.mean(x > 0) < 1:
            x *= -1
    return eigenvalues, eigenvectors, fell_back
