"""What main.py can be asked for. Nothing here is slow to import: --help and a wrong flag are answered at once."""

from dataclasses import dataclass

from spectralseg.errors import check_choice

MODES = ("lost", "eigenseg", "dinoseg", "tokencut", "trivial")
DATASETS = ("VOC07", "VOC12", "COCO20k", "folder")
SETS = ("train", "val", "trainval", "test")
CONVNETS = ("resnet50", "resnet50_imagenet", "vgg16_imagenet")
ARCHITECTURES = ("vit_tiny", "vit_small", "vit_base", *CONVNETS)
PICTURES = ("fms", "seed_expansion", "pred")


@dataclass(frozen=True)
class DataOptions:
    """Which images; the flags of main.py of these names."""

    dataset: str = "VOC07"
    set: str = "trainval"
    data_root: str = "data"
    images_root: str | None = None
    annotations: str | None = None
    image_path: str | None = None
    no_hard: bool = False

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, DATASETS)
        check_choice("set", self.set, SETS)


@dataclass(frozen=True)
class DetectorOptions:
    """How boxes are found; the flags of main.py of these names."""

    mode: str = "lost"
    arch: str = "vit_small"
    patch_size: int = 16
    weights: str | None = None
    which_features: str = "k"
    k_patches: int = 100
    resnet_dilate: int = 2
    dinoseg_head: int = 4
    dinoseg_mended: bool = False
    tau: float = 0.2
    which_matrix: str = "infer"
    trivial: str | None = None
    precomputed_eigs_dir: str | None = None
    precomputed_features_dir: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)

    @property
    def needs_model(self) -> bool:
        """Whether features are computed on the spot."""
        return self.mode != "trivial" and not (self.precomputed_eigs_dir or self.precomputed_features_dir)
