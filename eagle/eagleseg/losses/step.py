"""The losses of one training step, and their sum.

Source: Kim et al., EAGLE, CVPR 2024, section 3; weights and schedule as in the published code.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from eagleseg.losses.correspondence import CorrespondenceSettings, positive_and_negative
from eagleseg.losses.eicue import eicue_eigenvectors
from eagleseg.losses.object_contrast import consecutive, means, medoids, object_contrast, token_weights
from eagleseg.model.heads import EagleModel
from eagleseg.model.probes import ClusterProbe
from spectralseg.settings import setting

VOID = -1
EIGEN_ALPHA = 1.0  # sharpness of the eigen-cluster probes
CONTRAST_WEIGHT = 0.85


@dataclass
class LossSettings(CorrespondenceSettings):
    """Parameters of the losses, under their published names; the config files explain them."""

    pos_inter_weight: float = 0.25
    neg_inter_weight: float = 0.63
    # EiCue
    eicue_source: str = setting("learned", choices=("learned", "precomputed", "none"))
    eicue_color: str = setting("released", choices=("released", "rgb", "none"))
    # object-centric contrast
    contrastive_temp: float = setting(0.07, above=0)
    global_loss_weight: float = 0.7
    centroid_mode: str = setting("prototype", choices=("prototype", "medoid", "mean", "learned"))
    label_smoothing: bool = False


class EagleStep(nn.Module):
    """Losses of a batch: what Accelerate wraps, so that gradients are shared among processes."""

    def __init__(self, model: EagleModel, settings: LossSettings) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, clean: Tensor, blurred: Tensor, batch: dict[str, Tensor], share: float) -> dict[str, Tensor]:
        """Every loss by its name, unweighted; scalars.

        Parameters
        ----------
        clean, blurred
            (B, C, h, w) features of the two views, without gradient.
        batch
            ``img`` (B, 3, H, W) RGB in [0, 1]: EiCue reads its colour for both views, as published; ``label``
            (B, H, W) int64 with -1 for void, where there are labels; ``eigs`` (B, eigen_cluster - 1, h, w) for
            precomputed EiCue.
        share
            Weight u of the contrast; at 0 it is not computed. Without EiCue it must be 0.
        """
        model = self.model
        # The clean view passes the head twice, with dropout of its own: as an image, and as its own positive.
        features, codes = model.head(torch.cat([clean, clean, blurred]))
        image, positive, other = zip(features.chunk(3), codes.chunk(3), strict=True)
        terms = {}
        terms["correspondence_positive"], terms["correspondence_negative"] = positive_and_negative(
            image, positive, other, self.settings
        )
        idle: list[nn.Parameter] = []
        if self.settings.eicue_source == "none":
            idle += [*model.eigen_probe.parameters(), *model.eigen_probe_blur.parameters()]
        else:
            vectors, vectors_blur = self._eigenvectors(positive[1], other[1], batch)
            terms["eigen"], segments = _eicue(vectors, model.eigen_probe)
            terms["eigen_blur"], segments_blur = _eicue(vectors_blur, model.eigen_probe_blur)
        if share > 0:
            tokens, tokens_blur = model.tokens_for_contrast(positive[1]), model.tokens_for_contrast(other[1])
            terms["contrast"] = self._contrast(tokens, tokens_blur, segments, positive[0])
            terms["contrast_blur"] = self._contrast(tokens_blur, tokens, segments_blur, other[0])
        else:
            idle += [*model.project_head.parameters(), *([] if model.prototypes is None else [model.prototypes])]
        if idle:  # a gradient of zero: processes that train together wait for those of all parameters
            terms["correspondence_positive"] = terms["correspondence_positive"] + 0 * sum(each.sum() for each in idle)
        return {**terms, **probe_losses(model, image[1].detach(), batch.get("label"))}

    def _eigenvectors(self, code: Tensor, code_blur: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """EiCue's eigenvectors (B, eigen_cluster - 1, h, w) of both views; the codes get no gradient from here."""
        if self.settings.eicue_source == "precomputed":
            return batch["eigs"], batch["eigs"]
        count = self.model.eigen_probe.clusters.shape[1] + 1  # the first one is constant
        codes, images = torch.cat([code, code_blur]).detach(), batch["img"].repeat(2, 1, 1, 1)
        vectors, vectors_blur = eicue_eigenvectors(codes, images, count, self.settings.eicue_color).chunk(2)
        return vectors, vectors_blur

    def _contrast(self, own: Tensor, other: Tensor, segments: Tensor, features: Tensor) -> Tensor:
        labels = segments.flatten()
        if self.model.prototypes is not None:  # centroid_mode=learned
            prototypes = functional.normalize(self.model.prototypes, dim=1)
        else:
            labels, count = consecutive(labels)
            prototypes = (means if self.settings.centroid_mode == "mean" else medoids)(own, labels, count)
        return object_contrast(
            own,
            other,
            labels,
            prototypes,
            token_weights(features.flatten(2)),
            self.settings.contrastive_temp,
            self.settings.global_loss_weight,
            self.settings.label_smoothing,
        )


def _eicue(vectors: Tensor, probe: ClusterProbe) -> tuple[Tensor, Tensor]:
    """Loss of a view's eigen-cluster probe, and its segments (B, h, w)."""
    loss, probabilities = probe(vectors, EIGEN_ALPHA)
    return loss, probabilities.argmax(dim=1)


def probe_losses(model: EagleModel, code: Tensor, label: Tensor | None) -> dict[str, Tensor]:
    """Losses of the probes that are evaluated, on a code without gradient: (B, dim, h, w), label (B, H, W).

    Without labels, or where all of a batch are void, there is no linear loss.
    """
    cluster, _ = model.cluster_probe(code)
    terms = {"cluster": cluster}
    if label is not None:
        logits = functional.interpolate(
            model.linear_probe(code), label.shape[-2:], mode="bilinear", align_corners=False
        )
        valid = (label != VOID).sum()
        summed = functional.cross_entropy(logits.float(), label, ignore_index=VOID, reduction="sum")
        terms["linear"] = summed / valid.clamp_min(1)
    return terms


def total_loss(terms: dict[str, Tensor], share: float, settings: LossSettings) -> Tensor:
    """The sum that is minimised: (eigen + eigen_blur) / 2 + (1 - u) correspondence + 0.85 u contrast + probes."""
    total = (1 - share) * (
        settings.pos_inter_weight * terms["correspondence_positive"]
        + settings.neg_inter_weight * terms["correspondence_negative"]
    )
    if "eigen" in terms:
        total = total + (terms["eigen"] + terms["eigen_blur"]) / 2
    if share > 0:
        total = total + CONTRAST_WEIGHT * share * (terms["contrast"] + terms["contrast_blur"])
    return total + sum(terms[name] for name in ("cluster", "linear") if name in terms)
