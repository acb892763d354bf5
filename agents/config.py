"""Command lines of the agents: one flat dataclass, presets between its defaults and the flags, errors on one line.

    args, used, explicit = config.parse(Args, presets, argv)

Precedence, weakest first: defaults of the dataclass, presets in the order given, flags. The command line is read
twice: once to learn what the presets depend on (task, size, device), once with the presets as defaults, so that
`--help` shows the values that would really be used.
"""

import difflib
import io
import math
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import MISSING, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from select import POLLERR, POLLHUP, poll
from threading import current_thread, main_thread
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    TextIO,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

T = TypeVar("T")
Overrides = Mapping[str, Any]
Presets = Callable[[T], Iterable[tuple[str, Overrides]]]


class Parsed(NamedTuple, Generic[T]):
    """What a command line says."""

    args: T
    """defaults, presets and flags merged"""
    presets: list[str]
    """names of the presets that were used, weakest first"""
    explicit: set[str]
    """fields that the user set with a flag, whatever the value"""


def parse(args_class: type[T], presets: Presets[T] | None = None, argv: Sequence[str] | None = None) -> Parsed[T]:
    """Return the settings that a command line asks for, or print one line on stderr and exit with status 2.

    Flags are `--field-name value`, `--field_name value` or `--field-name=value`; a bool field is `--flag` and
    `--no-flag`; the last of two equal flags wins.

    Args:
        args_class: dataclass with a default and a docstring for every field, of plain types: bool, int, float, str,
            Path, Literal, tuples of these, or None. Positional arguments (`tyro.conf.Positional`) and fields without
            a default work where there are no presets.
        presets: given the settings without presets, the (name, overrides) pairs that apply to them. A ValueError that
            it raises, an unknown task for instance, is the user's error and becomes the one line.
        argv: without the program's name; `sys.argv[1:]` if None.

    Raises:
        TypeError: an override names no field, or has the wrong type.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    given = _scan(args_class, argv)
    if presets is None:
        return Parsed(_tyro(args_class, argv, given), [], set(given))
    asked = _tyro(args_class, [token for token in argv if token not in ("-h", "--help")], given)
    try:
        used = list(presets(asked))
    except ValueError as error:
        fail(str(error))
    merged: dict[str, Any] = {}
    for name, overrides in used:
        checked(args_class, {name: overrides})
        merged.update(overrides)
    names = [name for name, _ in used]
    args = _tyro(args_class, argv, given, default=replace(args_class(), **merged), names=names)  # type: ignore[type-var]
    return Parsed(args, names, set(given))


def checked(args_class: type, table: Mapping[str, Overrides]) -> Mapping[str, Overrides]:
    """Return the table of presets as it is. Call it where the table is defined, and a typo fails at import.

    Raises:
        TypeError: an override names no field of `args_class`, or its value has not the field's type.
    """
    hints = get_type_hints(args_class)
    for name, overrides in table.items():
        for key, value in overrides.items():
            if key not in hints:
                raise TypeError(
                    f"preset {name!r} sets {key!r}, which {args_class.__name__} lacks{_nearest(key, hints)}"
                )
            if not _fits(value, hints[key]):
                raise TypeError(f"preset {name!r} sets {key} = {value!r}; expected {_describe(hints[key])}")
    return table


Row = tuple[str, tuple[str, ...], str | None, Overrides]
"""Of a table of presets: name, patterns of tasks, size or None for all, overrides."""


def select(table: Iterable[Row], task: str, size: str) -> list[tuple[str, Overrides]]:
    """Return (name, overrides) of the rows that apply to a task at a size, in the order of the table."""
    return [
        (name, overrides)
        for name, patterns, for_size, overrides in table
        if for_size in (None, size) and any(fnmatchcase(task, pattern) for pattern in patterns)
    ]


def fail(message: str) -> NoReturn:
    """Print `error: message` as one line on stderr and exit with status 2. Of several processes, each says its own."""
    rank = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
    print("error:" if rank == "0" else f"error in process {rank}:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


def program(main: Callable[[], int | None]) -> NoReturn:
    """Run a program and exit with its status. A reader of its output that leaves, as `| head` does, ends it quietly.

    Such an end has the status that a shell gives for SIGPIPE. The signal itself stays ignored until then: it would end
    a program that writes to a simulator which has died, without a word about it.
    """
    status: Any = None
    try:
        try:
            status = main()
        except SystemExit as stop:
            status = stop.code
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_has_left(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when the interpreter ends
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _reader_has_left(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    asked = poll()
    asked.register(stream.fileno(), 0)
    return any(event & (POLLERR | POLLHUP) for _, event in asked.poll(0))


def require(condition: bool, message: str) -> None:
    """Fail with the message unless the condition holds."""
    if not condition:
        fail(message)


def positive(args: Any, *names: str) -> None:
    """Fail unless these fields are above 0; None passes."""
    for name in names:
        value = getattr(args, name)
        require(value is None or value > 0, f"{_flag(name)} {value}: must be above 0")


def _flag(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def _nearest(word: str, legal: Iterable[str], prefix: str = "") -> str:
    """Suggestion to append to a message, or nothing."""
    matches = difflib.get_close_matches(word, list(legal), n=1)
    return f"; did you mean {prefix}{matches[0]}?" if matches else ""


def _scan(args_class: type, argv: Sequence[str]) -> dict[str, list[str]]:
    """Words that each field was given on the command line; fails on words that belong to no field.

    tyro would reject such words too, but in a box of many lines, and it does not say which flags were given.
    """
    types_of = get_type_hints(args_class, include_extras=True)
    hints = {f.name: types_of[f.name] for f in fields(args_class)}
    free = [name for name, hint in hints.items() if _positional(hint)]
    capacity = {name: _capacity(hint) for name, hint in hints.items() if name not in free}
    legal = {name.replace("_", "-"): name for name in capacity}
    legal |= {f"no-{flag}": name for flag, name in legal.items() if capacity[name] == 0}
    given: dict[str, list[str]] = {}
    flag, name = "", None
    for word in argv:
        if word in ("-h", "--help"):
            flag, name = word, None
        elif word.startswith("--"):
            flag, equals, value = word.partition("=")
            bare = flag[2:].replace("_", "-")
            name = legal.get(bare)
            if name is None:
                fail(f"unknown flag {flag}{_nearest(bare, legal, prefix='--')} (--help lists them all)")
            given[name] = [value] if equals else []
            if len(given[name]) > capacity[name]:
                fail(_unexpected(value, flag, switch=True))
        elif name is not None and len(given[name]) < capacity[name]:
            given[name].append(word)
        elif free:
            given[free.pop(0)] = [word]
        else:
            fail(_unexpected(word, flag, switch=name is not None and capacity[name] == 0))
    for name, words in given.items():
        if not words and capacity.get(name, 1) > 0:
            fail(f"{_flag(name)}: expected {_describe(types_of[name])}")
    required = [f.name for f in fields(args_class) if f.default is MISSING and f.default_factory is MISSING]
    missing = [name.upper() if name in free else _flag(name) for name in required if name not in given]
    if missing and not {"-h", "--help"} & set(argv):
        fail(f"missing {', '.join(missing)} (--help says what they are)")
    return given


def _unexpected(word: str, flag: str, switch: bool) -> str:
    """Message about a word that no field takes."""
    bare = flag[2:].removeprefix("no-").removeprefix("no_")
    advice = f": a switch takes no value, write --{bare} or --no-{bare}" if switch else ""
    return f"unexpected argument {word!r}{f' after {flag}' if flag else ''}{advice}"


def _tyro(
    args_class: type[T],
    argv: Sequence[str],
    given: Mapping[str, list[str]],
    default: T | None = None,
    names: Sequence[str] = (),
) -> T:
    """What tyro makes of words that `_scan` has accepted. Its box about a bad value becomes one line."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    if names:
        options["description"] = f"{args_class.__doc__}\n\nPresets in effect: {', '.join(names)}."
    box = io.StringIO()
    try:
        with redirect_stderr(box), _reader_may_leave(argv):
            args = tyro.cli(args_class, args=argv, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise  # --help
        fail(_unbox(box.getvalue(), get_type_hints(args_class), given))
    sys.stderr.write(box.getvalue())  # warnings
    for name in given:
        value = getattr(args, name)
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            fail(f"{_flag(name)} {' '.join(given[name])}: must be finite")
        if any(isinstance(part, int) and abs(part) >= 1 << 63 for part in parts):
            fail(f"{_flag(name)} {' '.join(given[name])}: must be below 2^63")
    return args


@contextmanager
def _reader_may_leave(argv: Sequence[str]) -> Iterator[None]:
    """Let `--help | head` end without a traceback, and leave all else as it was."""
    if not ({"-h", "--help"} & set(argv) and hasattr(signal, "SIGPIPE") and current_thread() is main_thread()):
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
    finally:
        sys.stdout.flush()
        signal.signal(signal.SIGPIPE, before)


def _unbox(box: str, hints: Mapping[str, Any], given: Mapping[str, list[str]]) -> str:
    """One line instead of tyro's box: the first flag that it names, what was given and what is legal."""
    flags = {_flag(name): name for name in hints}
    name = next((flags[word] for word in re.findall(r"--[\w-]+", box) if word in flags), None)
    if name is not None and name in given:
        return f"{' '.join([_flag(name), *given[name]])}: expected {_describe(hints[name])}"
    body = box.partition("\n")[2].split("For full helptext")[0]
    return " ".join(re.sub(r"(?m)^[│|]|[│|]$|[─-]{2,}", " ", body).split())


def _positional(hint: Any) -> bool:
    """Whether the field is written without a flag."""
    return tyro.conf.Positional[int].__metadata__[0] in getattr(hint, "__metadata__", ())  # type: ignore[attr-defined]


def _capacity(hint: Any) -> float:
    """How many words a field of this type takes at most: none for a switch, any number for a list."""
    if _is_union(hint):
        return max(1, *map(_capacity, get_args(hint)))
    return 0 if hint is bool else math.inf if get_origin(hint) in (tuple, list) else 1


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field. An int is fine for a float; a bool is not an int."""
    if _is_union(hint):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, get_origin(hint) or hint)


def _describe(hint: Any) -> str:
    """What is legal, in words."""
    if _is_union(hint):
        return " or ".join(_describe(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (tuple, list):
        return "a list, each " + _describe(get_args(hint)[0])
    words = {int: "an integer", float: "a number", str: "a text", bool: "True or False", Path: "a path"}
    return words.get(hint, "None" if hint is type(None) else getattr(hint, "__name__", str(hint)))
