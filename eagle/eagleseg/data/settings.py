"""Which data set, and which view of it."""

from dataclasses import dataclass

from spectralseg.errors import InputError
from spectralseg.settings import Settings, setting

CROP_TYPES = ("five", "random")
LOADER_CROPS = ("center", "random")


@dataclass
class DataSettings(Settings):
    """Which data, and which view of them; the config files explain the entries."""

    pytorch_data_dir: str
    dataset_name: str = "cocostuff27"
    dir_dataset_name: str | None = None
    dir_dataset_n_classes: int | None = None
    dir_dataset_class_names: list[str] | None = None
    dir_dataset_void: int | None = None
    crop_type: str | None = setting("five", choices=CROP_TYPES)  # None: whole images
    crop_ratio: float = setting(0.5, above=0, most=1)
    res: int = setting(224, least=1)
    loader_crop_type: str = setting("center", choices=LOADER_CROPS)
    augment_geometric: bool = False
    augment_photometric: bool = False
    features_dir: str | None = None
    eigs_dir: str | None = None
    patch_size: int = setting(8, least=1)
    eigen_cluster: int = setting(4, least=2)  # the first one is constant
    seed: int = setting(0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        moved = "augment_geometric=true" if self.augment_geometric else f"loader_crop_type={self.loader_crop_type}"
        if (self.features_dir or self.eigs_dir) and moved != "loader_crop_type=center":
            stored = "features_dir" if self.features_dir else "eigs_dir"
            raise InputError(f"{stored} is of the centred square of each image, which {moved} does not show")
