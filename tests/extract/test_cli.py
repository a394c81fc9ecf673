"""The command line: everything is checked before anything starts, and what is wrong is said in one line."""

import inspect
import re
import shlex
import shutil
import typing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from running import command_line, error_line, run_command
from shared_data import SAMPLES
from spectralseg.commands import cli
from spectralseg.running.fire_app import main

COMMANDS = {command.__name__: command for command in cli.COMMANDS}
EIGS = ["extract_eigs", "--images_root", "images", "--features_dir", "features", "--output_dir", "out"]
calls = []


def paint(
    images: str,
    output: str,
    blocks: tuple[int, ...] = (-1,),
    parts: tuple[str, ...] = ("k",),
    K: int = 20,
    strength: float = 0.0,
    lapnorm: bool = True,
    overwrite: bool = False,
    weights: str | None = None,
    size: int | None = None,
) -> None:
    """A command that only notes what it was called with."""
    calls.append({name: value for name, value in locals().items() if name not in ("images", "output")})


def called(*arguments):
    """What ``paint`` is called with for a command line, without its defaults."""
    calls.clear()
    main([paint], ["paint", "--images", "a", "--output", "b", *arguments])
    defaults = {name: parameter.default for name, parameter in inspect.signature(paint).parameters.items()}
    (values,) = calls
    return {name: value for name, value in values.items() if value != defaults[name]}


def refused(commands, argv):
    """The error of a command line that must be refused without a call, and without anything else being printed."""
    calls.clear()
    message = error_line(main, commands, argv)
    assert not calls
    return message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--K", "5"], {"K": 5}),
        (["--K=5"], {"K": 5}),
        (["-K", "5"], {"K": 5}),
        (["--blocks", "-3,-2,-1"], {"blocks": (-3, -2, -1)}),
        (["--blocks=-3,-2"], {"blocks": (-3, -2)}),
        (["--blocks", "(-3, -2)"], {"blocks": (-3, -2)}),
        (["--blocks", "[4]"], {"blocks": (4,)}),
        (["--parts", "k,q"], {"parts": ("k", "q")}),
        (["--parts", "['k', 'v']"], {"parts": ("k", "v")}),
        (["--lapnorm", "False"], {"lapnorm": False}),
        (["--lapnorm=false"], {"lapnorm": False}),
        (["--nolapnorm"], {"lapnorm": False}),
        (["--no-lapnorm", "--K", "5"], {"lapnorm": False, "K": 5}),
        (["--overwrite"], {"overwrite": True}),
        (["--overwrite", "--K", "5"], {"overwrite": True, "K": 5}),
        (["--overwrite", "True"], {"overwrite": True}),
        (["--nooverwrite"], {}),
        (["--weights", "None"], {}),
        (["--weights", "model.pth"], {"weights": "model.pth"}),
        (["--size", "None"], {}),
        (["--size", "224"], {"size": 224}),
        (["--strength", "1e1"], {"strength": 10.0}),
        (["--strength", "-0.5"], {"strength": -0.5}),
    ],
)
def test_values_arrive_with_their_types(arguments, expected):
    values = called(*arguments)
    assert values == expected
    assert {name: type(value) for name, value in values.items()} == {n: type(v) for n, v in expected.items()}


def test_hyphens_in_flags_are_underscores_and_numbers_may_be_texts():
    seen = []

    def note(which_block: int, images: str) -> None:
        """Note."""
        seen.append((which_block, images))

    main([note], ["note", "--which-block=-1", "--images=1e3"])
    main([note], ["note", "--which-block", "-2", "--images", "2012"])
    assert seen == [(-1, "1e3"), (-2, "2012")]


@given(st.text(min_size=1))
@example("2012")
@example("-x")
@example("--K 5")
@example("a = b")
@example("None of them")
def test_any_text_arrives_as_it_is(text):
    seen = []

    def note(images: str) -> None:
        """Note."""
        seen.append(images)

    main([note], ["note", f"--images={text}"])
    assert seen == [text]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bloks", "1"], "error: paint has no flag --bloks (did you mean --blocks?)"),
        (["--zebra=1"], "error: paint has no flag --zebra"),
        (["-z", "1"], "error: paint has no flag -z"),
        (["-o", "x"], "error: paint has no flag -o"),  # --output or --overwrite?
        (["--K", "five"], "error: --K takes a whole number, not 'five'"),
        (["--K", "5.5"], "error: --K takes a whole number, not '5.5'"),
        (["--K="], "error: --K needs a value"),
        (["--weights", ""], "error: --weights needs a value"),
        (["--K"], "error: --K needs a value"),
        (["--weights", "--K", "5"], "error: --weights needs a value"),
        (["--strength", "much"], "error: --strength takes a number, not 'much'"),
        (["--strength", "nan"], "error: --strength takes a number, not 'nan'"),
        (["--lapnorm", "maybe"], "error: --lapnorm takes True or False, not 'maybe'"),
        (["--nolapnorm", "5"], "error: --nolapnorm takes no value"),
        (["--noimages"], "error: paint has no flag --noimages (did you mean --images?)"),
        (["--size", "big"], "error: --size takes None or a whole number, not 'big'"),
        (["--blocks", "1,x"], "error: --blocks takes whole numbers separated by commas, not '1,x'"),
        (["--", "--trace"], "error: cannot read the argument '--'"),
        (["-", "upper"], "error: cannot read the argument '-'"),
        (["1", "k", "5", "0", "1", "0", "w", "8", "more"], "error: paint: cannot make use of 'more'"),
    ],
)
def test_refused_before_anything_starts(arguments, message, capsys):
    assert refused([paint], ["paint", "--images", "a", "--output", "b", *arguments]) == message
    assert capsys.readouterr() == ("", "")


def test_all_missing_flags_are_named():
    assert refused([paint], ["paint"]).startswith("error: paint needs --images, --output (see ")
    assert refused([paint], ["paint", "--output", "b"]).startswith("error: paint needs --images (see ")
    assert refused([paint], ["paint", "a"]).startswith("error: paint needs --output (see ")
    assert refused(COMMANDS.values(), ["extract_eigs", "--K", "5"]).startswith(
        "error: extract_eigs needs --images_root, --output_dir (see "
    )


def test_a_wrong_command_is_guessed():
    message = refused(COMMANDS.values(), ["extract_eig", "--K", "5"])
    assert message.startswith("error: no command 'extract_eig' (did you mean extract_eigs?); commands: ")
    assert all(name in message for name in COMMANDS)
    assert refused(COMMANDS.values(), ["--nonsense"]).startswith("error: no command '--nonsense'")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_docstring_and_starts_nothing(name, capsys, tmp_path):
    signature = inspect.signature(COMMANDS[name])
    required = [f"--{n}={tmp_path / 'absent'}" for n, p in signature.parameters.items() if p.default is p.empty]
    shown = []
    for argv in ([name, "--help"], [name, *required, "-h"]):
        with pytest.raises(SystemExit) as stop:
            main(COMMANDS.values(), argv)
        assert stop.value.code == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        shown.append(captured.out)
    assert shown[0] == shown[1]
    words = " ".join(shown[0].split())
    assert " ".join(inspect.getdoc(COMMANDS[name]).splitlines()[0].split()) in words
    for flag in signature.parameters:
        assert flag in words or flag.upper() in words


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_lists_the_commands(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(COMMANDS.values(), argv)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_a_converter_and_a_line_of_help(name):
    from spectralseg.running.fire_app import _CONVERTERS

    documented = set(re.findall(r"^ {4}(\w+): ", inspect.getdoc(COMMANDS[name]), flags=re.MULTILINE))
    assert documented == set(inspect.signature(COMMANDS[name]).parameters)
    for hint in typing.get_type_hints(COMMANDS[name]).values():
        options = {type(None)} if hint is type(None) else set(typing.get_args(hint)) - {...}
        assert hint in _CONVERTERS or options <= set(_CONVERTERS)


def test_the_process_ends_with_status_1_and_one_line():
    result = run_command(command_line(*EIGS, "--k", "5"))
    assert (result.returncode, result.stderr) == (1, "error: extract_eigs has no flag --k (did you mean --K?)\n")


def test_bad_values_and_missing_folders_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(COMMANDS.values(), [*EIGS, "--K", "0"]) == "error: K=0: must be at least 1"
    assert refused(COMMANDS.values(), EIGS) == "error: no such folder: features"
    assert not list(tmp_path.iterdir())


def examples(text):
    """The ``python extract.py`` command lines in a docstring, as arguments."""
    joined = re.sub(r"\\\n\s*", "", inspect.cleandoc(text))
    return [shlex.split(line)[2:] for line in re.findall(r"^ *(python extract\.py .*)$", joined, flags=re.MULTILINE)]


def test_every_command_has_an_example():
    for name, command in COMMANDS.items():
        assert [example[0] for example in examples(command.__doc__)][:1] == [name] or "streamlit" in command.__doc__


def test_examples_run_one_after_the_other(tmp_path):
    """On data/samples made small, with lab_hog: what one example writes, the next one reads."""
    for path in (SAMPLES / "images").iterdir():
        with Image.open(path) as image:
            folder = tmp_path / "images"
            folder.mkdir(exist_ok=True)
            image.resize((160, 128)).save(folder / path.name)
    moved = {
        "../data/samples/images.txt": str(SAMPLES / "images.txt"),
        "../data/samples/images": str(tmp_path / "images"),
        "../data/VOC2012/lists/images.txt": str(SAMPLES / "images.txt"),
        "../data/VOC2012/images": str(tmp_path / "images"),
        "dino_vits16": "lab_hog",
    }
    order = list(COMMANDS.values())
    order.sort(key=lambda command: inspect.unwrap(command).__code__.co_firstlineno)
    for text in [cli, *order]:
        for arguments in examples(text.__doc__):
            if arguments[0] in ("stream", "unpack"):
                continue  # test_stream.py: they need Ray, which changes the process that imports it
            argv = [moved.get(argument, argument.replace("../", f"{tmp_path}/")) for argument in arguments]
            if argv[0] == "run":
                argv += ["--model_name", "lab_hog"]  # its default needs weights
                shutil.rmtree(argv[argv.index("--output") + 1], ignore_errors=True)
            before = set(tmp_path.rglob("*"))
            main(COMMANDS.values(), argv)
            assert set(tmp_path.rglob("*")) > before, f"{argv} wrote nothing"
