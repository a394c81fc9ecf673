"""A plain implementation of EAGLE's published training step, to measure `eagle/` against.

Kim, Han, Ju, Hwang, "EAGLE", CVPR 2024 (arXiv 2403.01482), done the way the published code does it and with none of
this project's library: the frozen backbone runs three times on each image (the image, itself again, its blurred view),
to its end, with attention written out; each of two graphs per image is decomposed in full; every part has an optimiser
of its own. `test_plain_eagle.py` holds its losses against the project's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import plain_extract

BLOCKS = (9, 10, 11)


class PlainEagle(nn.Module):
    """Frozen backbone, head, probes and their optimisers.

    Parameters
    ----------
    backbone : from `plain_extract.load_model`.
    n_classes, extra_clusters, dim, eigen_cluster, eigen_cluster_out : sizes of head and probes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_classes: int,
        extra_clusters: int,
        dim: int = 512,
        eigen_cluster: int = 4,
        eigen_cluster_out: int = 32,
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        channels = len(BLOCKS) * backbone.embed_dim
        self.drop = nn.Dropout2d(0.1)
        self.A, self.B, self.C = (
            nn.Conv2d(channels, dim, 1),
            nn.Conv2d(channels, channels, 1),
            nn.Conv2d(channels, dim, 1),
        )
        self.project_head = nn.Linear(dim, dim)
        self.linear_probe = nn.Conv2d(dim, n_classes, 1)
        self.cluster_probe = nn.Parameter(torch.randn(n_classes + extra_clusters, dim))
        self.eigen_probe = nn.Parameter(torch.randn(eigen_cluster_out, eigen_cluster - 1))
        self.eigen_probe_blur = nn.Parameter(torch.randn(eigen_cluster_out, eigen_cluster - 1))
        self.K = eigen_cluster
        head = [*self.A.parameters(), *self.B.parameters(), *self.C.parameters()]
        groups = [
            (head, 5e-4),
            (self.project_head.parameters(), 5e-4),
            (self.linear_probe.parameters(), 1e-3),
            ([self.cluster_probe], 5e-3),
            ([self.eigen_probe], 5e-5),
            ([self.eigen_probe_blur], 5e-5),
        ]
        self.optimisers = [torch.optim.Adam(list(parameters), lr) for parameters, lr in groups]

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Keys of the last three blocks: (B, 3, H, W) normalised -> (B, 3D, h, w)."""
        model, seen = self.backbone, {}
        hooks = [
            model.blocks[number].attn.qkv.register_forward_hook(
                lambda _module, _inputs, output, number=number: seen.update({number: output})
            )
            for number in BLOCKS
        ]
        P = model.patch_embed.patch_size[0]
        rows, columns = images.shape[2] // P, images.shape[3] // P
        x = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), dim=1)
        x = x + plain_extract.position_embedding(model, rows, columns)
        for block in model.blocks:
            x = block(x)
        model.norm(x)
        for hook in hooks:
            hook.remove()
        D = model.embed_dim
        keys = [seen[number][:, 1:, D : 2 * D].transpose(1, 2) for number in BLOCKS]
        return torch.cat(keys, dim=1).reshape(len(x), -1, rows, columns)

    def net(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features with dropout, and code."""
        features = self.features(images)
        code = self.A(self.drop(features)) + self.C(F.relu(self.B(self.drop(features))))
        return self.drop(features), code

    def losses(self, img: Tensor, img_blur: Tensor, label: Tensor) -> dict[str, Tensor]:
        """All losses by the project's names, contrast included."""
        image, positive, other = self.net(img), self.net(img), self.net(img_blur)
        terms = dict(
            zip(
                ("correspondence_positive", "correspondence_negative"),
                correspondence(image, positive, other),
                strict=True,
            )
        )
        segments = {}
        for name, (_, code), probe in (
            ("eigen", positive, self.eigen_probe),
            ("eigen_blur", other, self.eigen_probe_blur),
        ):
            terms[name], probabilities = cluster(eigenvectors(code.detach(), img, self.K), probe, 1.0)
            segments[name] = probabilities.argmax(1)
        tokens, tokens_blur = (
            F.normalize(self.project_head(code.flatten(2).transpose(1, 2).reshape(-1, code.shape[1])), dim=1)
            for _, code in (positive, other)
        )
        terms["contrast"] = contrast(tokens, tokens_blur, segments["eigen"], positive[0])
        terms["contrast_blur"] = contrast(tokens_blur, tokens, segments["eigen_blur"], other[0])
        code = image[1].detach()
        logits = F.interpolate(self.linear_probe(code), label.shape[-2:], mode="bilinear", align_corners=False)
        terms["linear"] = F.cross_entropy(logits, label, ignore_index=-1)
        terms["cluster"], _ = cluster(code, self.cluster_probe, None)
        return terms

    def step(self, img: Tensor, img_blur: Tensor, label: Tensor) -> Tensor:
        """A whole training step; returns the loss."""
        terms = self.losses(img, img_blur, label)
        loss = (terms["eigen"] + terms["eigen_blur"]) / 2
        loss = loss + 0.1 * (0.25 * terms["correspondence_positive"] + 0.63 * terms["correspondence_negative"])
        loss = loss + 0.85 * 0.9 * (terms["contrast"] + terms["contrast_blur"]) + terms["linear"] + terms["cluster"]
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in self.optimisers:
            optimiser.step()
        return loss.detach()


def cluster(x: Tensor, centroids: Tensor, alpha: float | None) -> tuple[Tensor, Tensor]:
    """Loss and probabilities of a cluster probe."""
    inner = torch.einsum("bchw,nc->bnhw", F.normalize(x, dim=1), F.normalize(centroids, dim=1))
    if alpha is None:
        probabilities = F.one_hot(inner.argmax(1), len(centroids)).permute(0, 3, 1, 2).to(inner)
    else:
        probabilities = F.softmax(alpha * inner, dim=1)
    return -(probabilities * inner).sum(1).mean(), probabilities


def correspondence(image: tuple, positive: tuple, other: tuple, samples: int = 11, negatives: int = 5) -> tuple:
    """Mean positive and negative losses."""
    count = len(image[1])
    like = image[1]
    first, second, third = (torch.rand(count, samples, samples, 2).to(like) * 2 - 1 for _ in range(3))

    def at(t: Tensor, points: Tensor) -> Tensor:
        return F.grid_sample(t, points.permute(0, 2, 1, 3), padding_mode="border", align_corners=True)

    def loss(f1: Tensor, f2: Tensor, c1: Tensor, c2: Tensor, is_positive: bool) -> Tensor:
        with torch.no_grad():
            fd = torch.einsum("bchw,bcij->bhwij", F.normalize(f1, dim=1), F.normalize(f2, dim=1))
            before = fd.mean()
            fd = fd - fd.mean([3, 4], keepdim=True)
            fd = fd - fd.mean() + before
        cd = torch.einsum("bchw,bcij->bhwij", F.normalize(c1, dim=1), F.normalize(c2, dim=1))
        shift = (fd.mean() - cd.mean()).abs() if is_positive else (fd.mean() + cd.mean()) * 3.5
        return -cd.clamp(0, 0.8) * (fd - shift)

    (f_other, c_other), (f_positive, c_positive) = [at(t, third) for t in other], [at(t, second) for t in positive]
    agree = loss(f_other, f_positive, c_other, c_positive, True)
    differ = []
    for _ in range(negatives):
        order = torch.randperm(count)
        order[order == torch.arange(count)] += 1
        order = order % count
        f, c = (at(t, first) for t in image)
        f_partner, c_partner = (at(t[order], second) for t in image)
        differ.append(loss(f, f_partner, c, c_partner, False))
    return agree.mean(), torch.stack(differ).mean()


@torch.no_grad()
def eigenvectors(code: Tensor, view: Tensor, K: int) -> Tensor:
    """Eigenvectors 1..K-1 of each image's graph: (B, K - 1, h, w)."""
    rows, columns = code.shape[-2:]
    small = F.interpolate(view, (rows, columns), mode="bilinear", align_corners=False)
    maps = []
    for z, pixels in zip(code.flatten(2).transpose(1, 2), small.flatten(2).transpose(1, 2), strict=True):
        A = F.relu(z @ z.T)
        A = A / A.max()
        C = torch.exp(-(torch.cdist(pixels / 255, pixels / 255) ** 2) / (2 * 0.1**2))
        W = A + C / C.max()
        D = torch.diag(W.sum(1))
        root = torch.diag(W.sum(1) ** -0.5)
        _, vectors = torch.linalg.eigh(root @ (D - W) @ root)
        X = vectors[:, :K]
        if 0.5 < (X > 0).float().mean() < 1:
            X = -X
        maps.append(X[:, 1:].T.reshape(K - 1, rows, columns))
    return torch.stack(maps)


def contrast(own: Tensor, other: Tensor, segments: Tensor, features: Tensor) -> Tensor:
    """Object-centric contrast with medoids."""
    with torch.no_grad():
        f = features.flatten(2)
        weights = F.normalize(f.transpose(1, 2) @ f, dim=1).mean(2).flatten()
    labels, prototypes = segments.flatten(), []
    for label in labels.unique():
        tokens = own[labels == label]
        prototypes.append(tokens[torch.cdist(tokens, tokens).detach().sum(1).argmin()])
    target = torch.searchsorted(labels.unique(), labels)
    C = torch.stack(prototypes)
    local, across = (F.cross_entropy(z @ C.T / 0.07, target, reduction="none") * weights for z in (own, other))
    return (0.3 * local.mean() + 0.7 * across.mean()) / 2
