"""What main.py can be asked for. Nothing here is slow to import: --help and a wrong flag are answered at once."""

from dataclasses import dataclass, replace

from spectralseg.errors import InputError, check_choice
from spectralseg.settings import Settings, setting

MODES = ("lost", "eigenseg", "dinoseg", "tokencut", "maskcut", "trivial", "objects")
DATASETS = ("VOC07", "VOC12", "COCO20k", "folder")
SETS = ("train", "val", "trainval", "test")
CONVNETS = ("resnet50", "resnet50_imagenet", "vgg16_imagenet")
ARCHITECTURES = ("vit_tiny", "vit_small", "vit_base", *CONVNETS)
COMPUTED = ("k", "q", "v", "out")  # of the last block; files may have others
TAU = (0.2,)
PICTURES = ("fms", "seed_expansion", "pred")
METHODS = ("lost", "eigenseg", "tokencut", "maskcut", "dinoseg")
FEATURES = ("k", "q", "v", "out")
FOREGROUNDS = ("eigenvector", "ranking", "robust")


@dataclass(frozen=True)
class DataOptions(Settings):
    """Which images; the flags of main.py of these names."""

    dataset: str = setting("VOC07", choices=DATASETS)
    set: str = setting("trainval", choices=SETS)
    data_root: str = "data"
    images_root: str | None = None
    annotations: str | None = None
    image_path: str | None = None
    no_hard: bool = False


@dataclass(frozen=True)
class DetectorOptions(Settings):
    """How boxes are found; the flags of main.py of these names."""

    mode: str = setting("lost", choices=MODES)
    arch: str = "vit_small"
    patch_size: int = setting(16, least=1)
    weights: str | None = None
    which_features: str = "k"
    k_patches: int = setting(100, least=1)
    gram_bias: float = 0.0
    resnet_dilate: int = setting(2, choices=(1, 2, 4))
    dinoseg_head: int = setting(4, least=0)
    dinoseg_mended: bool = False
    tau: tuple[float, ...] = TAU
    which_matrix: str = setting("infer", choices=("infer", "affinity", "laplacian", "local"))
    foreground: str = setting("eigenvector", choices=("eigenvector", "ranking", "robust"))
    trivial: str | None = setting(None, choices=("whole", "central"))
    objects: str | None = None
    precomputed_eigs_dir: str | None = None
    precomputed_features_dir: str | None = None
    device: str = "auto"

    @property
    def of_patches(self) -> "DetectorOptions":
        """What decides the patches that are read: of taus only that there are any."""
        return replace(self, tau=TAU)

    @property
    def needs_model(self) -> bool:
        """Whether features are computed on the spot."""
        return self.mode != "trivial" and not (self.precomputed_eigs_dir or self.precomputed_features_dir)


@dataclass(frozen=True)
class ResultOptions(Settings):
    """What is written, and where; the flags of main.py of these names."""

    output_dir: str = "outputs"
    name: str | None = None
    skip_if_exists: bool = False
    overwrite: bool = False
    no_evaluation: bool = False
    save_predictions: bool = True
    save_masks: bool = False
    visualize: str | None = setting(None, choices=PICTURES)
    num_workers: int = setting(0, least=0)


@dataclass(frozen=True)
class CompareOptions(Settings):
    """What is compared, and where; the flags of compare.py of these names."""

    backbones: tuple[str, ...] = ("dino_vits16",)
    features: tuple[str, ...] = ("k",)
    blocks: tuple[int, ...] = (-1,)
    methods: tuple[str, ...] = ("lost", "eigenseg", "tokencut")
    tau: tuple[float, ...] = (0.2,)
    k_patches: tuple[int, ...] = (100,)
    gram_bias: tuple[float, ...] = (0.0,)
    dinoseg_head: tuple[int, ...] = (4,)
    foreground: tuple[str, ...] = ("eigenvector",)
    masks: str | None = None
    output_dir: str = "outputs/comparison"
    device: str = "auto"
    num_workers: int = setting(0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("features", FEATURES), ("methods", METHODS), ("foreground", FOREGROUNDS)):
            for value in getattr(self, name):
                check_choice(name, value, known)
        if any(block >= 0 for block in self.blocks):
            raise InputError("--blocks counts from the end: -1 is the last")
