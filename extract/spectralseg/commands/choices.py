"""What ``run`` and ``stream`` let one choose of the stages; the backbone's preset decides the rest."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from spectralseg.api import Preset, preset_of
from spectralseg.commands.eigs import EigenSettings
from spectralseg.commands.masks import MultiRegionSettings, SingleRegionSettings
from spectralseg.mathematics.affinity import COLOR_GRIDS
from spectralseg.mathematics.eigen import MATRICES
from spectralseg.mathematics.ranking import FOREGROUNDS
from spectralseg.models.tokens import PER_PATCH
from spectralseg.settings import Settings, setting


class StageSettings(NamedTuple):
    """Of eigenvectors, mask and segments."""

    eigs: EigenSettings
    single: SingleRegionSettings
    multi: MultiRegionSettings


@dataclass(frozen=True)
class StageChoices(Settings):
    """The flags of these names of both commands; None is what the preset says."""

    K: int | None = setting(None, least=2)  # number 0 is constant
    num_segments: int = setting(4, least=1, most=255)
    which_matrix: str | None = setting(None, choices=MATRICES)
    which_features: str = setting("k", choices=PER_PATCH)
    image_color_lambda: float = setting(0.0, least=0)
    color_grid: str = setting("cropped", choices=COLOR_GRIDS)
    foreground: str | None = setting(None, choices=FOREGROUNDS)

    def preset(self, model_name: str) -> Preset:
        """A backbone's preset, with what was asked for in its place."""
        asked = {name: getattr(self, name, None) for name in ("K", "which_matrix", "max_size", "foreground")}
        return replace(preset_of(model_name), **{name: value for name, value in asked.items() if value is not None})

    def stages(self, preset: Preset, mask_format: str = "palette") -> StageSettings:
        """The settings of the stages, by what :meth:`preset` gives."""
        of_graph = EigenSettings(
            which_matrix=preset.which_matrix,
            which_features=self.which_features,
            K=preset.K,
            image_color_lambda=self.image_color_lambda,
            color_grid=self.color_grid,
        )
        single = SingleRegionSettings(mask_format=mask_format, foreground=preset.foreground)
        multi = MultiRegionSettings(
            non_adaptive_num_segments=self.num_segments, num_eigenvectors=preset.num_eigenvectors
        )
        return StageSettings(of_graph, single, multi)
