"""Validation during training: both probes on the whole split, without flip averaging or CRF, and some pictures."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Subset

from eagleseg.data.dataset import EagleDataset
from eagleseg.evaluation.probabilities import cluster_scores, image_code, linear_logits
from eagleseg.evaluation.scores import ProbeCounts
from eagleseg.model.heads import EagleModel
from spectralseg.progress import phase
from spectralseg.training.batches import read_batches


@dataclass
class Sample:
    """An image of the picture grid: index in the data set, label maps (H, W) by caption, -1 void."""

    index: int
    maps: dict[str, NDArray] = field(default_factory=dict)


@torch.no_grad()
@phase("validation")
def validate(
    features_of: Callable[[Tensor], Tensor],
    model: EagleModel,
    dataset: EagleDataset,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    pictures: int,
) -> tuple[ProbeCounts | None, list[Sample]]:
    """Counts of both probes over the data set, each process on its share, and the first images' label maps.

    Returns
    -------
    counts
        Of the whole data set, in every process; None without labels.
    samples
        The first ``pictures`` images of this process's share.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    share = Subset(dataset, range(rank, len(dataset), world))
    counts = ProbeCounts(len(model.cluster_probe.clusters), dataset.n_classes) if dataset.has_labels else None
    samples: list[Sample] = []
    was_training = model.training
    model.eval()
    for batch in read_batches(share, batch_size, num_workers):
        images = batch["img"].to(accelerator.device)
        with accelerator.autocast():
            code = image_code(features_of, model, images, flip=False)
        if counts is None and len(samples) >= pictures:
            break
        size = (images.shape[-2], images.shape[-1])
        cluster = cluster_scores(model, code, size).argmax(dim=1).cpu()
        linear = linear_logits(model, code, size).argmax(dim=1).cpu()
        if counts is not None:
            counts.add(cluster, linear, batch["label"])
        for row in range(min(len(images), pictures - len(samples))):
            maps = {"label": batch["label"][row].numpy()} if dataset.has_labels else {}
            maps |= {"linear": linear[row].numpy()} if dataset.has_labels else {}
            samples.append(Sample(int(batch["index"][row]), {**maps, "cluster": cluster[row].numpy()}))
    model.train(was_training)
    if counts is not None and world > 1:
        for name in ("cluster", "linear"):
            total = accelerator.reduce(torch.from_numpy(getattr(counts, name)).to(accelerator.device), "sum")
            setattr(counts, name, total.cpu().numpy())
    return counts, samples
