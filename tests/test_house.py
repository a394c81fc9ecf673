"""Imports run down: from scripts by way of the rooms of ``CONTRIBUTING.md`` to the errors, and never in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
LIBRARY = ("errors", "settings", "progress", "mathematics", "files", "models")
LIBRARY += ("drawing", "running", "training", "api", "commands")
EAGLE = ("data", "model", "losses", "checkpoints", "evaluation", "training")
FOLDERS = {
    "extract": ("spectralseg", LIBRARY),
    "object-localization": ("objectloc", ()),
    "object-segmentation": ("objectseg", ()),
    "semantic-segmentation": ("semanticseg", ()),
    "eagle": ("eagleseg", EAGLE),
}
PACKAGES = [package for package, _ in FOLDERS.values()]


def module_of(path: Path, folder: str) -> str:
    """What a module is imported by; for a script, its path."""
    parts = path.relative_to(PROJECT / folder).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__") if len(parts) > 1 else f"{folder}/{path.name}"


MODULES = {module_of(path, folder): path for folder in FOLDERS for path in sorted((PROJECT / folder).rglob("*.py"))}


def imported(module: str) -> set[str]:
    """The project's own modules that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return (found & set(MODULES)) - {module}


IMPORTS = {module: imported(module) for module in MODULES}


def height(module: str) -> tuple[int, int]:
    """(0 for the library, 1 for a task, 2 for a script; the room's place in its package, from below)."""
    package, _, rest = module.partition(".")
    if package not in PACKAGES:
        return 2, 0
    rooms = dict(FOLDERS.values())[package]
    room = rest.partition(".")[0]
    if not room:  # the package itself, that is its version
        return int(package != "spectralseg"), 0
    return int(package != "spectralseg"), rooms.index(room) if room in rooms else len(rooms)


def circles() -> Iterator[list[str]]:
    """Modules that import each other, whether directly or by way of others."""
    state: dict[str, int] = {}

    def visit(module: str, path: list[str]) -> Iterator[list[str]]:
        state[module] = 1
        for below in sorted(IMPORTS[module]):
            if state.get(below) == 1:
                yield [*path[path.index(below) :], below]
            elif below not in state:
                yield from visit(below, [*path, below])
        state[module] = 2

    for module in MODULES:
        if module not in state:
            yield from visit(module, [module])


def test_no_import_runs_upwards():
    up = [f"{module} -> {below}" for module in MODULES for below in IMPORTS[module] if height(below) > height(module)]
    assert "\n".join(up) == ""


def test_no_import_closes_a_circle():
    assert not list(circles())


def test_tasks_do_not_import_each_other():
    package = {module: module.partition(".")[0] for module in MODULES}
    across = [
        (module, below)
        for module in MODULES
        for below in IMPORTS[module]
        if package[module] in PACKAGES and package[below] not in ("spectralseg", package[module])
    ]
    assert not across


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_repeats_its_folders_name(package):
    parts = [module.split(".") for module in MODULES if module.startswith(f"{package}.")]
    assert parts
    assert not [names for names in parts if any(name in names[-1].split("_") for name in names[:-1])]


def test_the_map_of_the_house_names_every_room():
    page = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {module.split(".")[1] for module in MODULES if module.startswith("spectralseg.")}
    assert not [room for room in rooms if f"spectralseg/{room}" not in page]
    assert not [package for package in PACKAGES if f"{package}/" not in page]
