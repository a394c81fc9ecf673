"""Run a script with a Hydra config: mistakes are one line and exit status 1, and nothing is left lying about.

Hydra alone answers a mistake with several lines or a traceback. A script is

    from spectralseg.running.hydra_app import run, run_folder, to_settings

    def evaluate(config): settings = to_settings(config, Settings); ...; write into run_folder()

    if __name__ == "__main__":
        run(evaluate, "object-segmentation/eval")

Its config chooses the folder of its results and that Hydra writes nothing of its own (``configs/object-segmentation``
shows how). In configs ``${project:data/x}`` is a path in the repository, from wherever the script is started; where
there is no repository, it is one below the current folder.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from spectralseg.errors import InputError, OutputError, did_you_mean, printable, some_of
from spectralseg.files.places import configs_folder, project_folder
from spectralseg.files.storage import load_json, remove, save_json
from spectralseg.progress import VERBOSE, be_verbose, details, tell_settings
from spectralseg.running.arguments import INTERRUPTED

Settings = TypeVar("Settings")
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own variable: whoever sets it to 1 wants tracebacks

# Hydra's own flags; all other flags are settings.
SWITCHES = {"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"}
SWITCHES |= {"--shell-completion", "-sc"}
FLAGS = {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
FLAGS |= {"--experimental-rerun", "--info", "-i"}
CONFIG_NAME_FLAGS = ("--config-name", "-cn")
CONFIG_SUFFIXES = (".yaml", ".yml")
OVERRIDES = "overrides.json"  # in the folder of each job of a --multirun: what it was asked for


def run(task: Callable[[DictConfig], None], config_name: str, argv: Sequence[str] | None = None) -> None:
    """Compose the config with the overrides of the command line and call ``task(config)``.

    Overrides are Hydra's ``key=value``; ``--key value``, ``--key=value`` and, for a truth value, ``--key`` alone are
    understood too. ``--multirun``, ``--cfg job`` and Hydra's other flags work; ``--config-name`` takes another config
    of the same folder; ``--help`` shows the script's documentation and the config file.

    Parameters
    ----------
    task
        The script's work. Its :class:`InputError` and :class:`OutputError` end the script with one line.
    config_name
        Config below ``configs/``: its folder and its name, ``object-segmentation/eval``. The file is ``eval.yaml`` or
        ``eval.yml``.
    argv
        Arguments; default: those of the command line.
    """
    project, folder = project_folder(), configs_folder() / os.path.dirname(config_name)
    OmegaConf.register_new_resolver("project", lambda path: str(project / path), replace=True)
    started, full_error = False, os.environ.get(FULL_ERROR)

    @functools.wraps(task)  # Hydra names the job after the task's module
    def guarded(config: DictConfig) -> None:
        nonlocal started
        started = True
        try:
            _refuse_other_job(run_folder(), bool(config.get("overwrite")))
            with details():
                if is_verbose:
                    _tell_config(config)
                task(config)
        except (InputError, OutputError, OmegaConfBaseException) as error:
            if full_error == "1":
                raise
            if [path.name for path in run_folder().iterdir()] == [OVERRIDES]:
                remove(run_folder() / OVERRIDES)
            _remove_empty(run_folder(), {Path.cwd(), project / "outputs"})
            sys.exit(f"error: {_one_line(error)}")

    given = _overrides(sys.argv[1:] if argv is None else argv)
    argv = [text for text in given if text.lower() not in ("verbose=true", "verbose=false")]  # no setting of the config
    is_verbose = "verbose=true" in map(str.lower, given)
    name = os.path.basename(config_name)
    if {"--help", "-h"} & set(argv):  # Hydra's own help tells neither what the script does nor what settings mean
        shown = _config_file(folder, _chosen_config(argv) or name)
        print((sys.modules[task.__module__].__doc__ or "").strip(), end="\n\n")
        print(shown.read_text(encoding="utf-8").strip())
        print(f"\n# --verbose: {VERBOSE}")
        return
    main = hydra.main(config_path=str(folder), config_name=name, version_base="1.3")(guarded)
    with _command_line(argv):
        os.environ[FULL_ERROR] = "1"  # makes Hydra raise its errors instead of printing them
        try:
            with _yml_configs(folder):
                main()
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except Exception as error:
            if started or full_error == "1":
                raise  # a fault of ours
            chosen = _chosen_config(argv)
            if isinstance(error, MissingConfigException) and chosen and "--config-path" not in argv:
                _config_file(folder, chosen)  # says which there are
            sys.exit(f"error: {_one_line(error)}")
        finally:
            if full_error is None:
                del os.environ[FULL_ERROR]
            else:
                os.environ[FULL_ERROR] = full_error


def _tell_config(config: DictConfig) -> None:
    be_verbose()
    given, job = (text.partition("=")[::2] for text in HydraConfig.get().overrides.task), HydraConfig.get().job
    tell_settings(job.name, "given", {key.lstrip("+~"): value for key, value in given})
    tell_settings(job.name, f"of {job.config_name}", OmegaConf.to_container(config, resolve=True))  # type: ignore


@contextlib.contextmanager
def _yml_configs(folder: Path) -> Iterator[None]:
    """Let Hydra, which looks for ``.yaml`` files alone, find the ``.yml`` files of a folder and those below it.

    They are put into Hydra's store of configs, and taken out again: a config of the same name that another run of this
    process reads would be checked against them.
    """
    store, added = ConfigStore.instance(), []
    try:
        for path in sorted(folder.rglob("*.yml")):
            if path.with_suffix(".yaml").exists():
                sys.exit(f"error: {path} and {path.with_suffix('.yaml').name} have the same name; delete one of them")
            try:
                content = OmegaConf.load(path)
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                sys.exit(f"error: {path} is no YAML: {_one_line(error)}")
            parents = path.relative_to(folder).parent.parts
            store.store(name=path.stem, node=content, group="/".join(parents) or None, provider=str(path))
            added.append((parents, f"{path.stem}.yaml"))
        yield
    finally:
        for parents, name in added:
            del functools.reduce(dict.__getitem__, parents, store.repo)[name]


def _chosen_config(argv: Sequence[str]) -> str | None:
    """Value of ``--config-name``, without the suffix."""
    for argument, following in zip(argv, [*argv, ""][1:], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in CONFIG_NAME_FLAGS:
            return _bare_name(value if equals else following)
    return None


def _bare_name(config: str) -> str:
    stem, suffix = os.path.splitext(config)
    return stem if suffix in CONFIG_SUFFIXES else config


def _config_file(folder: Path, name: str) -> Path:
    """The file of a config, or an exit with the names of those that there are."""
    for suffix in CONFIG_SUFFIXES:
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    names = sorted({path.stem for path in folder.glob("*.y*ml") if path.suffix in CONFIG_SUFFIXES})
    sys.exit(f"error: Cannot find primary config '{name}'. In {folder} there are: {', '.join(names)}")


def run_folder() -> Path:
    """The folder of this run's results: ``hydra.run.dir``, or below ``hydra.sweep.dir`` in a ``--multirun``."""
    return Path(HydraConfig.get().runtime.output_dir)


def _refuse_other_job(folder: Path, overwrite: bool) -> None:
    """Of a --multirun: its jobs are numbered, so that another one would write over their results."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    asked, before = list(HydraConfig.get().overrides.task), load_json(folder / OVERRIDES)
    if before != asked and (before is not None or any(folder.iterdir())) and not overwrite:
        of = "another run" if before is None else some_of([text for text in before if text not in asked] or before)
        raise InputError(f"{folder} holds the results of {of}; name another folder with hydra.sweep.dir=...")
    save_json(folder / OVERRIDES, asked)


def to_settings(config: DictConfig, kind: type[Settings]) -> Settings:
    """The config as a dataclass, checked by its type hints.

    Raises
    ------
    InputError
        A value of another type, a setting that the dataclass does not have, or one that is missing.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), config)
        if missing := sorted(OmegaConf.missing_keys(merged)):
            raise InputError(f"{', '.join(missing)}: must be given, as {missing[0]}=... (--help explains)")
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise InputError(_one_line(error)) from None


def _remove_empty(folder: Path, roots: set[Path]) -> None:
    """Remove a run folder that holds nothing, and its parents likewise, below one of ``roots``: Hydra made them."""
    with contextlib.suppress(OSError):  # not empty
        while folder not in roots and roots & set(folder.parents):
            folder.rmdir()
            folder = folder.parent


@contextlib.contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv itself."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Hydra's own flags with their values, then the overrides; settings given as flags become such.

    In this order because Hydra's parser takes no override after a flag that follows one.
    """
    flags, overrides, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            overrides.append(argument)
        elif flag in SWITCHES | FLAGS or not re.match(r"--[A-Za-z]", argument):
            apart = argument in FLAGS and bool(rest)
            value = rest.pop(0) if apart else value
            value = _bare_name(value) if flag in CONFIG_NAME_FLAGS else value
            flags += [flag, value] if apart else [f"{flag}{equals}{value}"]
        else:
            if not equals:
                alone = not rest or re.match(r"--?[A-Za-z]|[+~]*[\w.@/-]+=", rest[0])
                value = "true" if alone else rest.pop(0)
            overrides.append(f"{flag[2:].replace('-', '_')}={value}")
    return flags + overrides


def _one_line(error: BaseException) -> str:
    """What an error of Hydra, OmegaConf or ours says, without line breaks and talk of Hydra's insides."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(error, OverrideParseException):
        hint = "; a value with special characters needs quotes of its own: 'key=\"value\"'"
        text = f"cannot read '{error.override}': {str(error).partition('See https')[0].strip()}{hint}"
    elif isinstance(cause, ConfigKeyError | ConfigAttributeError):
        text = f"there is no setting '{cause.full_key or cause.key}'{_guess(cause)}"
    elif "Incompatible value 'None'" in str(cause) and isinstance(cause, OmegaConfBaseException):
        text = f"{cause.full_key or cause.key}: a value is needed, not null"
    elif isinstance(cause, OmegaConfBaseException):
        text = f"{cause.full_key or cause.key or 'the config'}: {str(cause).partition('full_key')[0]}"
    elif isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error).partition("Config search path:")[0] or type(error).__name__
    return printable(" ".join(text.split()))


def _guess(error: OmegaConfBaseException) -> str:
    """The setting that was meant, from those beside it."""
    siblings = error.parent_node
    return did_you_mean(str(error.key), map(str, siblings)) if isinstance(siblings, DictConfig) else ""
