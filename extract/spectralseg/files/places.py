"""Where configs, data and checkpoints lie: in the checkout, or elsewhere if the package was installed without one."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1] if (PACKAGE.parent / "extract.py").is_file() else None


def project_folder() -> Path:
    """The folder below which data/, checkpoints/ and outputs/ lie: the checkout or, without one, the current folder."""
    return CHECKOUT or Path.cwd()


def configs_folder() -> Path:
    """The folder of the Hydra configs: that of the checkout or, without one, the one that was installed."""
    return (CHECKOUT or PACKAGE) / "configs"
