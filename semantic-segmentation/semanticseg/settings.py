"""The settings of evaluation and self-training; configs/semantic-segmentation explains them."""

from dataclasses import dataclass, field
from typing import Any

from spectralseg.errors import InputError
from spectralseg.files.label_maps import ENLARGE, VOC_CLASSES
from spectralseg.mathematics.crf import BACKENDS
from spectralseg.settings import Settings, setting


@dataclass
class Loader(Settings):
    """How images are read."""

    batch_size: int = setting(least=1)
    num_workers: int = setting(least=0)


@dataclass
class Transform(Settings):
    """What the network sees of an image."""

    resize_size: int
    crop_size: int = setting(least=1)
    mean: list[float] | None = None
    std: list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize_size < self.crop_size:
            raise InputError(f"resize_size={self.resize_size} is below crop_size={self.crop_size}: crops would not fit")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise InputError(f"data.transform.{name} must have a number for each of r, g, b (std above 0)")


@dataclass
class Data(Settings):
    """Where images, masks and lists lie, and what the labels mean."""

    root: str
    images_dir: str
    masks_dir: str
    val_list: str
    loader: Loader
    transform: Transform
    num_classes: int = setting(least=1, most=254)
    num_clusters: int = setting(least=1, most=254)
    class_names: list[str] | None = None
    train_list: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise InputError(
                f"data.class_names has {len(self.class_names)} names, but there are {self.classes} classes with the"
                " background"
            )

    @property
    def classes(self) -> int:
        """Number of classes, the background included."""
        return self.num_classes + 1

    @property
    def clusters(self) -> int:
        """Number of clusters, the background included."""
        return self.num_clusters + 1

    def names(self) -> list[str]:
        """A name for each class, the background first."""
        if self.class_names is not None:
            return list(self.class_names)
        if self.classes == len(VOC_CLASSES):
            return list(VOC_CLASSES)
        return [str(number) for number in range(self.classes)]


@dataclass
class Common(Settings):
    """What evaluation and self-training share."""

    seed: int
    name: str
    data: Data
    segments_dir: str | None = None
    enlarge: str = setting("patches", choices=ENLARGE)
    matching: Any = None
    crf: bool = False
    crf_dir: str | None = None
    crf_processes: int = setting(2, least=0)
    crf_backend: str = setting("auto", choices=BACKENDS)
    visualize: int = setting(40, least=0)

    def require_segments(self) -> str:
        """``segments_dir``, or an error that says what it is."""
        if not self.segments_dir:
            raise InputError(
                "segments_dir=... is missing: the folder of label maps, as extract_semantic_segmentations writes them"
            )
        return self.segments_dir


@dataclass
class EvalSettings(Common):
    """An evaluation."""

    seeds: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        folder = self.require_segments()
        if self.seeds is None:
            return
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError("seeds must be a list of different numbers, such as [0,1,2,3,4]")
        if "%" not in folder:
            raise InputError(f"with seeds, segments_dir needs a % that stands for each of them: {folder} has none")
        if self.crf_dir is not None and "%" not in self.crf_dir:
            raise InputError(f"with seeds, crf_dir needs a % that stands for each of them: {self.crf_dir} has none")


@dataclass
class Model(Settings):
    """The network."""

    name: str = "deeplabv3plus"
    backbone: str = "dino_resnet50"
    weights: str | None = None
    unfrozen_backbone_layers: int = setting(1, least=-1)  # -1: all


@dataclass
class TrainSettings(Common):
    """A self-training."""

    model: Model = field(default_factory=Model)
    job_type: str = setting("train", choices=("train", "generate"))
    lr: float = setting(0.005, above=0)
    weight_decay: float = setting(1e-8, least=0)
    max_train_steps: int = setting(5000, least=1)
    gradient_accumulation_steps: int = setting(1, least=1)
    ema: bool = False
    ema_decay: float = setting(0.999, above=0, below=1)
    mixed_precision: str = "no"
    device: str = "auto"
    evaluate_every: int = setting(1, least=1)
    checkpoint_every: int | None = setting(10, least=1)
    log_every: int = setting(10, least=1)
    logger: str | None = "tensorboard"
    overwrite: bool = False
    checkpoint: str | None = None
    generate_list: str | None = None
    generate_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.job_type == "train":
            self.require_segments()
