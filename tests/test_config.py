"""Command lines: precedence against brute force, what --help shows, and errors of one line with status 2."""

import io
import itertools
import os
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from agents import config

ROOT = Path(config.__file__).resolve().parents[1]


@dataclass
class Args:
    """Trains nothing."""

    env_id: str = "cheetah"
    """task to learn"""
    size: Literal["small", "large"] = "small"
    """size of the machine"""
    batch_size: int = 32
    """rows per update"""
    lr: float = 3e-4
    """learning rate"""
    sem: bool = False
    """simplicial embeddings"""
    ln: bool = True
    """layer norm"""
    clip: float | None = None
    """largest norm of a gradient"""
    hidden: tuple[int, ...] = (256, 256)
    """widths"""
    out: Path = Path("runs")
    """where to write"""


SIZES: dict[str, dict[str, Any]] = {"large": {"batch_size": 1024, "lr": 1e-3, "hidden": (512,)}}
TASKS: dict[str, dict[str, Any]] = {"h1": {"batch_size": 4096, "sem": True, "clip": 10}}


def presets(args: Args) -> list[tuple[str, dict[str, Any]]]:
    """By size, then by task."""
    if args.env_id == "nope":
        raise ValueError("unknown task 'nope';\n known are cheetah, h1")
    return [(key, table[key]) for table, key in ((SIZES, args.size), (TASKS, args.env_id)) if key in table]


def refused(capsys: pytest.CaptureFixture[str], *argv: str, args_class: type = Args, table: Any = presets) -> str:
    """The one line that a wrong command line gets."""
    with pytest.raises(SystemExit) as stop:
        config.parse(args_class, table, argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    return err


FLAGS: dict[str, tuple[list[str], Any]] = {
    "env_id": (["--env-id", "h1"], "h1"),
    "size": (["--size=large"], "large"),
    "batch_size": (["--batch_size", "7"], 7),
    "lr": (["--lr", "-1e-5"], -1e-5),
    "sem": (["--no-sem"], False),
    "ln": (["--no_ln"], False),
    "clip": (["--clip", "None"], None),
    "hidden": (["--hidden", "1", "2", "3"], (1, 2, 3)),
}


def test_precedence_for_every_subset_of_flags() -> None:
    for count in range(len(FLAGS) + 1):
        for names in itertools.combinations(FLAGS, count):
            argv = [word for name in names for word in FLAGS[name][0]]
            expected = {f.name: f.default for f in fields(Args)}
            used = []
            if "size" in names:
                expected |= SIZES["large"]
                used.append("large")
            if "env_id" in names:
                expected |= TASKS["h1"]
                used.append("h1")
            expected |= {name: FLAGS[name][1] for name in names}
            parsed = config.parse(Args, presets, argv)
            assert vars(parsed.args) == expected
            assert parsed.presets == used
            assert parsed.explicit == set(names)


def test_argv_of_the_program_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prog", "--lr", "1"])
    assert config.parse(Args).args.lr == 1.0


def test_dashes_and_underscores_and_the_last_flag_wins() -> None:
    for flag in ("--batch-size", "--batch_size"):
        assert config.parse(Args, presets, [flag, "5"]).args.batch_size == 5
        assert config.parse(Args, presets, [f"{flag}=5"]).args.batch_size == 5
    assert config.parse(Args, presets, ["--sem", "--no-sem", "--lr=1", "--lr=2"]).args == Args(lr=2.0)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8))
def test_any_text_comes_through_as_it_was_typed(text: str) -> None:
    assert config.parse(Args, None, [f"--env-id={text}"]).args.env_id == text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--batch_sise", "3"], "unknown flag --batch_sise; did you mean --batch-size?"),
        (["--bath-size=3"], "unknown flag --bath-size; did you mean --batch-size?"),
        (["--no-sme"], "did you mean --no-sem?"),
        (["--no-lr", "3"], "unknown flag --no-lr"),
        (["--xyzzy"], "unknown flag --xyzzy (--help"),
        (["--batch-size", "abc"], "--batch-size abc: expected an integer"),
        (["--batch-size", "3.5"], "--batch-size 3.5: expected an integer"),
        (["--batch-size=3e4"], "--batch-size 3e4: expected an integer"),
        (["--batch-size"], "--batch-size: expected an integer"),
        (["--env-id", "--sem"], "--env-id: expected a text"),
        (["--size", "huge"], "--size huge: expected one of small, large"),
        (["--clip", "x"], "--clip x: expected a number or None"),
        (["--hidden", "1", "x"], "--hidden 1 x: expected a list, each an integer"),
        (["--sem", "true"], "unexpected argument 'true' after --sem: a switch takes no value, write --sem or --no-sem"),
        (["--sem=1"], "write --sem or --no-sem"),
        (["--no_ln", "1"], "write --ln or --no-ln"),
        (["--batch-size", "1", "2"], "unexpected argument '2' after --batch-size"),
        (["cheetah"], "unexpected argument 'cheetah'"),
        (["-x"], "unexpected argument '-x'"),
        (["--env-id", "nope"], "unknown task 'nope'; known are cheetah, h1"),
    ],
)
def test_wrong_command_lines(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    assert says in refused(capsys, *argv)


WORDS = [word for words, _ in FLAGS.values() for word in words] + ["--clip", "z", "9", "-h", "--no-clip", "--hidden="]


@given(st.lists(st.sampled_from(WORDS)), st.sampled_from(["utf-8", "ascii"]))
def test_any_mixture_is_parsed_or_refused_in_one_line(words: list[str], encoding: str) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            assert isinstance(config.parse(Args, presets, words).args, Args)
            status = None
        except SystemExit as stop:
            status = stop.code
    printed, line = (_content(stream) for stream in (out, err))
    if status == 2:
        assert printed == "" and line.startswith("error: ") and line.count("\n") == 1
    else:
        assert line == "" and printed.startswith("" if status is None else "usage")
        assert status is None or "-h" in words


def _content(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def test_help_shows_what_would_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for argv in (["--help"], ["--env-id", "h1", "--size", "large", "--lr", "5", "-h"]):
        with pytest.raises(SystemExit) as stop:
            config.parse(Args, presets, argv)
        assert stop.value.code == 0
        out, err = capsys.readouterr()
        assert err == ""
        shown.append(out)
    plain, preset = shown
    assert "Trains nothing." in plain and "Trains nothing." in preset
    assert "rows per update (default: 32)" in plain and "rows per update (default: 4096)" in preset
    assert "simplicial embeddings (default: False)" in plain and "simplicial embeddings (default: True)" in preset
    assert "widths (default: 512)" in preset
    assert "--sem, --no-sem" in plain
    assert "Presets in effect" not in plain and "Presets in effect: large, h1." in preset


def _always(overrides: dict[str, Any], _: Args) -> list[tuple[str, dict[str, Any]]]:
    return [("x", overrides)]


def test_presets_are_checked_where_they_are_defined() -> None:
    assert config.checked(Args, TASKS) is TASKS  # an int for `clip: float | None` is fine
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_sise": 1}, r"preset 'x' sets 'batch_sise', which Args lacks; did you mean batch_size\?"),
        ({"batch_size": 25e3}, "sets batch_size = 25000.0; expected an integer"),
        ({"batch_size": True}, "expected an integer"),
        ({"batch_size": None}, "expected an integer"),
        ({"sem": 1}, "expected True or False"),
        ({"size": "huge"}, "expected one of small, large"),
        ({"clip": "1"}, "expected a number or None"),
        ({"hidden": 3}, "expected a list"),
        ({"env_id": 3}, "expected a text"),
        ({"out": "runs"}, "expected a path"),
    ]
    for overrides, says in cases:
        with pytest.raises(TypeError, match=says):
            config.checked(Args, {"x": overrides})
        with pytest.raises(TypeError, match=says):
            config.parse(Args, partial(_always, overrides), [])
    config.checked(Args, {"x": {"lr": 1, "clip": None, "hidden": (1,), "out": Path("x"), "size": "large"}})
    with pytest.raises(TypeError, match="dataclass"):
        config.parse(int, None, [])


@dataclass
class Verb:
    """Needs a directory."""

    run_dir: tyro.conf.Positional[Path]
    """of the run"""
    kind: Literal["onnx", "torch"]
    """of file"""
    steps: int = 3
    """how many"""


def test_positional_and_required_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["a/b", "--kind=onnx", "--steps", "4"], ["--steps", "4", "a/b", "--kind", "onnx"]):
        parsed = config.parse(Verb, None, argv)
        assert parsed.args == Verb(Path("a/b"), "onnx", 4)
        assert parsed.explicit == {"run_dir", "kind", "steps"}
    assert "missing RUN_DIR, --kind" in refused(capsys, args_class=Verb, table=None)
    assert "unexpected argument 'b'" in refused(capsys, "a", "b", args_class=Verb, table=None)
    assert "--steps x: expected an integer" in refused(
        capsys, "a", "--kind=onnx", "--steps", "x", args_class=Verb, table=None
    )
    with pytest.raises(SystemExit) as stop:
        config.parse(Verb, None, ["--help"])
    assert stop.value.code == 0


@dataclass
class Picky:
    """Checks itself."""

    num_envs: int = 4
    """N"""

    def __post_init__(self) -> None:
        if self.num_envs % 2:
            raise ValueError(f"num_envs {self.num_envs} is odd")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_error_of_the_dataclass_itself(encoding: str) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        config.parse(Picky, None, ["--num-envs", "3"])
    assert stop.value.code == 2
    assert _content(err) == "error: Error parsing Picky: num_envs 3 is odd\n"


def test_validators(capsys: pytest.CaptureFixture[str]) -> None:
    args = Args(batch_size=0, lr=float("nan"), clip=2.0)
    config.positive(Args(), "batch_size", "lr", "clip")
    config.require(True, "never")
    for call, says in [
        (lambda: config.positive(args, "clip", "batch_size"), "--batch-size 0: must be above 0"),
        (lambda: config.positive(args, "lr"), "--lr nan: must be above 0"),
        (lambda: config.require(1 > 2, "two\nlines"), "two lines"),
        (lambda: config.fail("no"), "no"),
    ]:
        with pytest.raises(SystemExit) as stop:
            call()
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"error: {says}\n"


def test_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(
        "from dataclasses import dataclass\n"
        "from agents import config\n"
        "@dataclass\n"
        "class Args:\n"
        "    sem: bool = False\n"
        '    """simplicial embeddings"""\n'
        "print(config.parse(Args).args)\n"
    )
    for argv, expected in [
        (["--sem"], (0, "Args(sem=True)\n", "")),
        (["--semm"], (2, "", "error: unknown flag --semm; did you mean --sem? (--help lists them all)\n")),
    ]:
        command = [sys.executable, str(tmp_path / "agent.py"), *argv]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert (done.returncode, done.stdout, done.stderr) == expected


def test_lists_have_words_and_numbers_are_finite(capsys: pytest.CaptureFixture[str]) -> None:
    hints = {f.name: f.type for f in fields(Args)}
    listed = next(name for name, kind in hints.items() if "tuple" in str(kind))
    assert "expected a list" in refused(capsys, "--" + listed.replace("_", "-"))
    for value in ("inf", "-inf", "nan"):
        assert "must be finite" in refused(capsys, "--lr", value)


PRINTS = """
import os, sys
from agents import config

def main():
    {before}
    for _ in range(100_000):
        print("a line that somebody may read")
    return 3

config.program(main)
"""


@pytest.mark.parametrize(
    ("before", "reader", "status", "error"),
    [
        ("pass", "head -1", 141, ""),
        ("pass", "cat", 3, ""),
        ("sys.stdout.write('x'); sys.exit(2)", "true", 2, None),  # who left may have left before or after
        ("raise BrokenPipeError('a simulator')", "cat", 1, "BrokenPipeError: a simulator"),
    ],
)
def test_a_reader_may_leave(before: str, reader: str, status: int, error: str | None) -> None:
    command = shlex.join([sys.executable, "-c", PRINTS.format(before=before)])
    line = f"{command} | {reader} > /dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert int(done.stdout) in ({status, 141} if error is None else {status})
    assert "Exception ignored" not in done.stderr and (done.stderr == "" if not error else error in done.stderr)


def test_help_leaves_the_signals_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGPIPE)
    with pytest.raises(SystemExit) as stop:
        config.parse(Args, argv=["--help"])
    assert stop.value.code == 0 and capsys.readouterr().out
    assert signal.getsignal(signal.SIGPIPE) == before != signal.SIG_DFL
