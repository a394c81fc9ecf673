"""Scripts with a Hydra config: overrides, flags, one-line errors, and no litter."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import DictConfig

from spectralseg.errors import InputError, OutputError
from spectralseg.running import hydra_app
from spectralseg.running.hydra_app import run, run_folder, to_settings

CONFIG = """\
# what the settings mean
defaults:
  - _self_
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
data: ${project:data/here}
model: {name: small, size: 3}
rate: 0.1
quick: false
label: null
hydra:
  run: {dir: "${project:outputs/results}"}
  sweep: {dir: sweep, subdir: "${hydra.job.num}"}
  output_subdir: null
"""


@dataclass
class Model:
    name: str
    size: int


@dataclass
class Settings:
    data: str
    model: Model
    rate: float
    quick: bool
    label: str | None = None


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one config; the tests run in another folder, which stays empty unless they say otherwise."""
    (tmp_path / "project" / "configs" / "room").mkdir(parents=True)
    (tmp_path / "project" / "configs" / "room" / "train.yaml").write_text(CONFIG)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(hydra_app, "project_folder", lambda: tmp_path / "project")
    monkeypatch.setattr(hydra_app, "configs_folder", lambda: tmp_path / "project" / "configs")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path / "project"


@pytest.fixture
def settings_of(project: Path) -> Callable[..., Settings]:
    """The settings that a script with these arguments gets."""

    def call(*arguments: str, config: str = "room/train") -> Settings:
        seen = []
        run(lambda config: seen.append(to_settings(config, Settings)), config, arguments)
        return seen[0]

    return call


@pytest.fixture
def message(project: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The line that a script with these arguments ends with; nothing else is printed."""

    def call(*arguments: str, task: Callable = lambda config: None, config: str = "room/train") -> str:
        with pytest.raises(SystemExit) as stop:
            run(task, config, arguments)
        assert capfd.readouterr() == ("", "")
        assert "\n" not in stop.value.code
        return stop.value.code.removeprefix("error: ")

    return call


def test_a_sweep_does_not_write_over_another(message: Callable, project: Path):
    def write(config: DictConfig) -> None:
        (run_folder() / "result").write_text(str(config.rate))

    earlier = "sweep/0 holds the results of rate=1; name another folder with hydra.sweep.dir=..."
    for _ in range(2):  # the same one goes on
        run(write, "room/train", ["--multirun", "rate=1,2"])
    assert message("--multirun", "rate=3,4", task=write).endswith(earlier)
    assert Path("sweep/0/result").read_text() == "1"
    assert message("--multirun", "rate=3", "hydra.sweep.dir=failed", task=fail) == "no"
    assert not Path("failed/0").exists()  # nothing that would stop the next one


def fail(config: DictConfig) -> None:
    raise InputError("no")


def test_overrides_in_hydras_form_and_as_flags(settings_of: Callable, project: Path):
    assert settings_of() == Settings(str(project / "data" / "here"), Model("small", 3), 0.1, False)
    for arguments in (
        ("model.size=5", "quick=true", "rate=-3", "label=x"),
        ("--model.size=5", "--quick", "--rate", "-3", "--label", "x"),
        ("--quick", "model.size=5", "--rate=-3", "--label=x"),
        ("--model.size", "5", "--quick", "true", "--rate", "-3.0", "--label", "x"),
    ):
        assert settings_of(*arguments) == Settings(str(project / "data" / "here"), Model("small", 5), -3, True, "x")
    assert settings_of("--config-name", "train", "--quick").quick
    assert settings_of("--config-name=train", "label='a=b'").label == "a=b"
    assert not list(Path.cwd().iterdir())  # Hydra writes nothing of its own
    assert not list((project / "outputs" / "results").iterdir())


def test_the_environment_and_the_arguments_are_as_before(settings_of: Callable, monkeypatch: pytest.MonkeyPatch):
    before = list(sys.argv)
    settings_of("quick=true")
    assert sys.argv == before
    assert "HYDRA_FULL_ERROR" not in os.environ
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    settings_of("quick=true")
    assert os.environ["HYDRA_FULL_ERROR"] == "0"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("modle.size=3", "there is no setting 'modle' (did you mean model?)"),
        ("model.sise=3", "there is no setting 'model.sise' (did you mean size?)"),
        ("--quik", "there is no setting 'quik' (did you mean quick?)"),
        ("zzz=3", "there is no setting 'zzz'"),
        ("rate", "cannot read 'rate': "),
        ("label=a(b", "cannot read 'label=a(b': "),
        ("rate=1,2", "Ambiguous value for argument 'rate=1,2'"),
        ("+rate=1", "Could not append to config. An item is already at 'rate'."),
        ("~zzz", "Could not delete from config. 'zzz' does not exist."),
        ("--config-name zzz", "Cannot find primary config 'zzz'."),
        ("--config-dir /nowhere", "Additional config directory '/nowhere' not found"),
        ("hydra.run.dir=/dev/null/x", "/dev/null/x: Not a directory"),
        ("hydra.run.dir=${zzz}", "hydra.run.dir: Interpolation key 'zzz' not found"),
    ],
)
def test_mistakes_before_the_work(message: Callable, arguments: str, expected: str):
    assert message(*arguments.split()).startswith(expected)
    assert not list(Path.cwd().iterdir())


def test_values_that_do_not_fit(message: Callable):
    for argument, expected in {
        "model.size=large": "model.size: Value 'large' of type 'str' could not be converted to Integer",
        "model.size=null": "model.size: ",
        "model=small": "model: ",
        "+model.depth=3": "there is no setting 'model.depth'",
        "rate=${zzz}": "rate: Interpolation key 'zzz' not found",
        "data=???": "data: ",
    }.items():
        assert message(argument, task=lambda config: to_settings(config, Settings)).startswith(expected)


def test_errors_of_the_work(message: Callable, project: Path):
    for error in (InputError("no such image: x.jpg"), OutputError("disk full")):

        def task(config: DictConfig, error: Exception = error) -> None:
            assert run_folder() == project / "outputs" / "results"
            raise error

        assert message(task=task) == str(error)
    assert not (project / "outputs" / "results").exists()  # Hydra makes it, empty, before the work begins


def test_folders_that_hold_something_or_lie_outside_stay(message: Callable, project: Path, tmp_path: Path):
    def write_and_fail(config: DictConfig) -> None:
        (run_folder() / "log").touch()
        fail(config)

    (tmp_path / "mine").mkdir()
    message(f"hydra.run.dir={tmp_path / 'mine'}", task=fail)
    assert (tmp_path / "mine").is_dir()
    message("hydra.run.dir=.", task=fail)
    assert Path.cwd().is_dir()
    message("hydra.run.dir=a/b", task=write_and_fail)
    message("hydra.run.dir=a/c/d", task=fail)
    assert sorted(str(path.relative_to(Path.cwd())) for path in Path.cwd().rglob("*")) == ["a", "a/b", "a/b/log"]


def test_tracebacks_are_for_our_own_faults_and_for_who_wants_them(project: Path, monkeypatch: pytest.MonkeyPatch):
    def fault(config: DictConfig) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        run(fault, "room/train", [])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InputError):
        run(fail, "room/train", [])
    with pytest.raises(Exception, match="Could not override"):
        run(fail, "room/train", ["zzz=3"])
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_interrupted(project: Path, capsys: pytest.CaptureFixture[str]):
    def interrupt(config: DictConfig) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run(interrupt, "room/train", [])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.parametrize("config", ["room/train", "recipes/large"])
def test_several_runs(recipes: Path, config: str):
    folders: list = []
    run(lambda config: folders.append((run_folder(), config.rate)), config, ["quick=true", "-m", "rate=1,2"])
    assert folders == [(Path.cwd() / "sweep" / "0", 1), (Path.cwd() / "sweep" / "1", 2)]


def test_help_tells_what_the_script_does_and_what_its_settings_mean(project: Path, capsys: pytest.CaptureFixture[str]):
    for flag in ("--help", "-h"):
        run(fail, "room/train", [flag])
        printed = capsys.readouterr().out
        assert printed.startswith("Scripts with a Hydra config")
        assert "# what the settings mean" in printed
    run(fail, "room/train", ["--cfg", "job", "--rate", "3"])
    assert "rate: 3" in capsys.readouterr().out


# --- configs named .yml, and several in one folder ---


BASE = "recipes/base"


@pytest.fixture
def recipes(project: Path) -> Path:
    """A folder that holds base.yml, large.yml (built on it), plain.yaml and sub/loud.yml."""
    folder = project / "configs" / "recipes"
    (folder / "sub").mkdir(parents=True)
    (folder / "base.yml").write_text(CONFIG)
    (folder / "large.yml").write_text("# the large one\ndefaults: [base, _self_]\nmodel: {name: large, size: 9}\n")
    (folder / "plain.yaml").write_text(CONFIG.replace("small", "plain"))
    (folder / "sub" / "loud.yml").write_text("label: loud\n")
    return folder


def test_yml_configs(recipes: Path, settings_of: Callable, project: Path):
    assert settings_of(config=BASE) == Settings(str(project / "data" / "here"), Model("small", 3), 0.1, False)
    assert settings_of("--model.size", "5", "rate=2", config=BASE).model == Model("small", 5)
    assert settings_of("+sub@_global_=loud", config=BASE).label == "loud"
    assert (project / "outputs" / "results").is_dir()  # hydra.run.dir of the file counts


@pytest.mark.parametrize("flag", ["--config-name large", "--config-name=large", "-cn large", "--config-name large.yml"])
def test_another_config_of_the_folder(recipes: Path, settings_of: Callable, flag: str):
    assert settings_of(*flag.split(), "--quick", config=BASE).model == Model("large", 9)
    assert settings_of("--quick", *flag.split(), "--rate", "3", config=BASE).rate == 3
    plain = flag.replace("large", "plain").replace("yml", "yaml")
    assert settings_of(*plain.split(), config=BASE).model.name == "plain"


def test_help_of_yml_configs(recipes: Path, capsys: pytest.CaptureFixture[str]):
    for arguments, expected in (
        ("--help", "name: small"),
        ("--config-name large --help", "# the large one"),
        ("-h --config-name=plain.yaml", "name: plain"),
    ):
        run(fail, BASE, arguments.split())
        assert expected in capsys.readouterr().out


def test_an_unknown_config_is_answered_with_those_that_there_are(recipes: Path, message: Callable):
    for arguments in ("--config-name larg", "--config-name=larg.yml", "--help --config-name larg"):
        line = f"Cannot find primary config 'larg'. In {recipes} there are: base, large, plain"
        assert message(*arguments.split(), config=BASE) == line


def test_yml_configs_are_forgotten_after_the_run(recipes: Path, settings_of: Callable, message: Callable):
    settings_of(config=BASE)
    (recipes.parent / "room" / "base.yaml").write_text(CONFIG)
    assert settings_of("--config-name", "base").model.name == "small"
    assert message("--config-name", "large").startswith("Cannot find primary config 'large'")


def test_configs_that_cannot_be_read(recipes: Path, message: Callable):
    for name, content, expected in (
        ("broken.yml", "a: [1", "broken.yml is no YAML: "),
        ("base.yaml", "a: 1", "have the same name"),
    ):
        (recipes / name).write_text(content)
        assert expected in message(config=BASE)
