"""Which data set, and which view of it."""

from dataclasses import dataclass

from spectralseg.errors import InputError

CROP_TYPES = ("five", "random")
LOADER_CROPS = ("center", "random")


@dataclass
class DataSettings:
    """Which data, and which view of them; the config files explain the entries."""

    pytorch_data_dir: str
    dataset_name: str = "cocostuff27"
    dir_dataset_name: str | None = None
    dir_dataset_n_classes: int | None = None
    dir_dataset_class_names: list[str] | None = None
    dir_dataset_void: int | None = None
    crop_type: str | None = "five"
    crop_ratio: float = 0.5
    res: int = 224
    loader_crop_type: str = "center"
    augment_geometric: bool = False
    augment_photometric: bool = False
    features_dir: str | None = None
    eigs_dir: str | None = None
    patch_size: int = 8
    eigen_cluster: int = 4
    seed: int = 0

    def check_data(self) -> None:
        """Raise an :class:`InputError` for settings that contradict each other or cannot be."""
        check_crops(self.crop_type, self.crop_ratio)
        if self.loader_crop_type not in LOADER_CROPS:
            raise InputError(f"loader_crop_type={self.loader_crop_type}: it must be {' or '.join(LOADER_CROPS)}")
        if self.patch_size < 1:
            raise InputError(f"patch_size={self.patch_size}: it must be at least 1 pixel")
        if self.seed < 0:
            raise InputError(f"seed={self.seed}: it must not be negative")
        moved = "augment_geometric=true" if self.augment_geometric else f"loader_crop_type={self.loader_crop_type}"
        if (self.features_dir or self.eigs_dir) and moved != "loader_crop_type=center":
            stored = "features_dir" if self.features_dir else "eigs_dir"
            raise InputError(f"{stored} is of the centred square of each image, which {moved} does not show")


def check_crops(crop_type: str | None, crop_ratio: float) -> None:
    """Raise an :class:`InputError` for crops that cannot be."""
    if crop_type is not None and crop_type not in CROP_TYPES:
        raise InputError(f"crop_type={crop_type}: it must be {' or '.join(CROP_TYPES)}, or null for whole images")
    if not 0 < crop_ratio <= 1:
        raise InputError(f"crop_ratio={crop_ratio}: it must be above 0 and at most 1")
