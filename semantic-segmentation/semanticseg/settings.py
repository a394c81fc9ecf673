"""The settings of evaluation and self-training; configs/semantic-segmentation explains them."""

from dataclasses import dataclass, field
from typing import Any

from spectralseg.errors import InputError, check_choice
from spectralseg.files.label_maps import ENLARGE, VOC_CLASSES


@dataclass
class Loader:
    batch_size: int
    num_workers: int


@dataclass
class Transform:
    resize_size: int
    crop_size: int
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass
class Data:
    num_classes: int
    num_clusters: int
    root: str
    images_dir: str
    masks_dir: str
    val_list: str
    loader: Loader
    transform: Transform
    class_names: list[str] | None = None
    train_list: str | None = None

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
class Common:
    seed: int
    name: str
    data: Data
    segments_dir: str | None = None
    enlarge: str = "patches"
    matching: Any = None
    crf: bool = False
    crf_dir: str | None = None
    crf_processes: int = 2
    visualize: int = 40

    def check(self) -> None:
        """Raise an :class:`InputError` for values that make no sense, before any work."""
        data = self.data
        check_choice("enlarge", self.enlarge, ENLARGE)
        for name, value in (("num_classes", data.num_classes), ("num_clusters", data.num_clusters)):
            if not 1 <= value <= 254:
                raise InputError(f"data.{name}={value}: there must be 1 to 254")
        if data.class_names is not None and len(data.class_names) != data.classes:
            raise InputError(
                f"data.class_names has {len(data.class_names)} names, but there are {data.classes} classes with the"
                " background"
            )
        if data.loader.num_workers < 0 or self.visualize < 0 or self.crf_processes < 0:
            raise InputError("data.loader.num_workers, visualize and crf_processes must be at least 0")

    def require_segments(self) -> str:
        """``segments_dir``, or an error that says what it is."""
        if not self.segments_dir:
            raise InputError(
                "segments_dir=... is missing: the folder of label maps, as extract_semantic_segmentations writes them"
            )
        return self.segments_dir


@dataclass
class EvalSettings(Common):
    seeds: list[int] | None = None

    def check(self) -> None:
        super().check()
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
class Model:
    name: str
    backbone: str
    weights: str | None
    unfrozen_backbone_layers: int


@dataclass
class TrainSettings(Common):
    model: Model = field(default_factory=lambda: Model("deeplabv3plus", "dino_resnet50", None, 1))
    job_type: str = "train"
    lr: float = 0.005
    weight_decay: float = 1e-8
    max_train_steps: int = 5000
    gradient_accumulation_steps: int = 1
    ema: bool = False
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    device: str = "auto"
    evaluate_every: int = 1
    checkpoint_every: int | None = 10
    log_every: int = 10
    logger: str | None = "tensorboard"
    overwrite: bool = False
    checkpoint: str | None = None
    generate_list: str | None = None
    generate_dir: str | None = None

    def check(self) -> None:
        super().check()
        if self.job_type not in ("train", "generate"):
            raise InputError(f"no job_type '{self.job_type}': train or generate")
        if self.job_type == "train":
            self.require_segments()
        positive = {
            "data.loader.batch_size": self.data.loader.batch_size,
            "data.transform.crop_size": self.data.transform.crop_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "max_train_steps": self.max_train_steps,
            "evaluate_every": self.evaluate_every,
            "log_every": self.log_every,
            "checkpoint_every": 1 if self.checkpoint_every is None else self.checkpoint_every,
        }
        for name, value in positive.items():
            if value < 1:
                raise InputError(f"{name}={value}: it must be at least 1")
        transform = self.data.transform
        if transform.resize_size < transform.crop_size:
            raise InputError(
                f"data.transform.resize_size={transform.resize_size} is below crop_size={transform.crop_size}: crops"
                " would not fit"
            )
        for name, values in (("mean", transform.mean), ("std", transform.std)):
            if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
                raise InputError(f"data.transform.{name} must have a number for each of r, g, b (std above 0)")
        if not (self.lr > 0 and self.weight_decay >= 0 and 0 < self.ema_decay < 1):
            raise InputError("lr must be above 0, weight_decay at least 0, and ema_decay between 0 and 1")
        if self.model.unfrozen_backbone_layers < -1:
            raise InputError("model.unfrozen_backbone_layers must be at least 0, or -1 to train all")
