"""Search spaces: what `tune.py --search` says, and whether an agent can take it.

    actor_lr=log:1e-4:1e-2         a number, even on a logarithmic scale; an integer where the setting is one
    gamma=uniform:0.95:0.999       a number
    num_updates=int:1:8            an integer, both ends included
    activation=choice:relu,silu    one of these; also sem=choice:on,off and actor_hidden=choice:64 64,256 128

The agent itself is asked about its settings, in a process of its own (`ask`): it parses each end and each option as
it would on its command line, checks its ranges, and makes its environments and networks once with the defaults. So an
unknown setting, a value that is not legal or a task that does not exist is one line before anything is written.
"""

import difflib
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from agents import config
from benchmarks.programs import load, refusal

FORMS = "log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH or choice:A,B"
ON, OFF = ("on", "true", "yes"), ("off", "false", "no")
DIGITS = 6
"""significant ones of a number that is drawn: a flag that can be read and typed, and is what is recorded"""


@dataclass(frozen=True)
class Dimension:
    """One setting that is searched. What `ask` learns from the agent comes after the options."""

    name: str
    kind: str
    """log, uniform, int or choice"""
    low: float = math.nan
    high: float = math.nan
    options: tuple[str, ...] = ()
    whole: bool = False
    """integers only"""
    switch: bool = False
    """on or off, without a value on the command line"""
    default: str = ""
    """the agent's own value for the task, as text"""
    inside: bool = False
    """the default lies in the space"""

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that an agent has to accept for all others to be legal too."""
        return self.options or (self.text(self.low), self.text(self.high))

    def text(self, value: float | str) -> str:
        """Return a value that was drawn, as it is given to the agent and written down."""
        if isinstance(value, str):
            return value
        if self.whole:
            return str(round(value))
        rounded = f"{value:.{DIGITS}g}"
        return rounded if self.low <= float(rounded) <= self.high else repr(float(value))

    def value(self, text: str) -> float | str:
        """Return the value that a text stands for."""
        return text if self.options else int(text) if self.whole else float(text)

    def words(self, text: str) -> list[str]:
        """Return a value as words of the agent's command line."""
        flag = self.name.replace("_", "-")
        if self.switch:
            return [f"--{flag}" if text.lower() in ON else f"--no-{flag}"]
        values = shlex.split(text)
        # A word with a minus in front may pass for a flag.
        return [f"--{flag}={values[0]}"] if text.startswith("-") and len(values) == 1 else [f"--{flag}", *values]


# ---- what is asked ---------------------------------------------------------------------------------------------------


def parse(texts: Sequence[str]) -> list[Dimension]:
    """Return the settings that are searched, as far as they can be read without the agent.

    Raises:
        ValueError: a text is not of a known form, or a range is empty.
    """
    if not texts:
        raise ValueError(f"nothing to search: --search NAME={FORMS}")
    found = [_parse(text) for text in texts]
    names = [dimension.name for dimension in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--search {twice[0]}: given twice")
    return found


def _parse(text: str) -> Dimension:
    name, equals, rest = text.partition("=")
    kind, _, values = rest.partition(":")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not re.fullmatch(r"[A-Za-z]\w*", name) or kind not in ("log", "uniform", "int", "choice"):
        raise ValueError(f"--search {text}: expected NAME={FORMS}")
    if kind == "choice":
        options = tuple(" ".join(option.split()) for option in values.split(","))
        if len(options) < 2 or not all(options) or len(set(options)) < len(options):
            raise ValueError(f"--search {text}: expected two options or more, none empty and none twice")
        return Dimension(name, kind, options=options)
    try:
        low, high = (float(int(x)) if kind == "int" else float(x) for x in values.split(":"))
    except ValueError:
        what = "two integers" if kind == "int" else "two numbers"
        raise ValueError(f"--search {text}: expected {what}, {kind}:LOW:HIGH") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"--search {text}: the low end must be below the high end, and both finite")
    if kind == "log" and low <= 0:
        raise ValueError(f"--search {text}: a logarithmic scale begins above 0")
    return Dimension(name, kind, low, high, whole=kind == "int")


# ---- what the agent says ---------------------------------------------------------------------------------------------


def ask(
    script: str, flags: Sequence[str], space: Sequence[Dimension], fixed: Sequence[str], env: Mapping[str, str]
) -> list[Dimension]:
    """Return the space with what the agent says about it.

    Args:
        script: the agent's program.
        flags: of all runs.
        space: from `parse`.
        fixed: settings that may not be searched.
        env: environment variables of the runs.

    Raises:
        ValueError: the agent refuses; in its own words.
    """
    request = {
        "flags": list(flags),
        "fixed": list(fixed),
        "space": [
            {"name": x.name, "kind": x.kind, "low": x.low, "high": x.high, "options": x.options, "whole": x.whole}
            for x in space
        ],
    }
    code = "import sys; from benchmarks import space; space.answer(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", code, script, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=dict(env))
    if done.returncode:
        raise ValueError(refusal(done, script))
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    return [replace(dimension, **answers[dimension.name]) for dimension in space]


def answer(script: str, request: str) -> None:
    """Print what an agent says about a search, as JSON in the last line; fail in one line if it refuses.

    This is the other side of `ask`, in a process that ends afterwards: only here the agent's program is loaded.
    """
    asked = json.loads(request)
    space = [Dimension(**{**x, "options": tuple(x["options"])}) for x in asked["space"]]
    agent = load(script)
    config.require(hasattr(agent, "Args"), f"{script} has no settings that can be searched: there is no class Args")
    hints = get_type_hints(agent.Args)
    presets = getattr(agent, "presets", None)
    plain = config.parse(agent.Args, presets, asked["flags"])
    found = []
    for dimension in space:
        _check_name(dimension.name, hints, asked["fixed"], plain.explicit, agent)
        found.append(_typed(dimension, hints[dimension.name]))
    values: dict[str, list[Any]] = {dimension.name: [] for dimension in found}
    for turn in range(max(len(dimension.ends) for dimension in found)):  # one of each at a time: parsing is slow
        words = [word for x in found for word in x.words(x.ends[turn % len(x.ends)])]
        args = config.parse(agent.Args, presets, [*asked["flags"], *words]).args
        for name in values:
            values[name].append(getattr(args, name))
    try:
        _check_values(agent, plain.args, found, values)
    except (ValueError, RuntimeError, MemoryError) as error:
        config.fail(str(error))
    answers = {}
    for dimension in found:
        default = getattr(plain.args, dimension.name)
        text, inside = _place(default, dimension, values[dimension.name])
        answers[dimension.name] = {
            "whole": dimension.whole,
            "switch": dimension.switch,
            "default": text,
            "inside": inside,
        }
    print("\n" + json.dumps(answers), flush=True)


def _check_name(name: str, hints: Mapping[str, Any], fixed: Sequence[str], given: set[str], agent: ModuleType) -> None:
    """Fail unless a setting exists and is free."""
    if name not in hints:
        near = difflib.get_close_matches(name, hints, n=3)
        advice = f"; did you mean {' or '.join(near)}?" if near else ""
        config.fail(f"--search {name}: the agent has no such setting{advice} (--help of the agent lists them all)")
    if name in fixed:
        config.fail(f"--search {name}: runs that differ in it are no variants of one another")
    if name in given:
        config.fail(f"--search {name}: the flags after -- set it already")


def _typed(dimension: Dimension, hint: Any) -> Dimension:
    """Return a dimension with the type of its field; fail if a range is no use there."""
    types = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    name, kind = dimension.name, dimension.kind
    if kind == "choice":
        known = all(option.lower() in ON + OFF for option in dimension.options)
        config.require(bool not in types or known, f"--search {name}: a switch, write {name}=choice:on,off")
        return replace(dimension, switch=bool in types)
    config.require(bool(types & {int, float}), f"--search {name}: not a number, write {name}=choice:A,B")
    if float in types:
        return dimension
    whole = dimension.low.is_integer() and dimension.high.is_integer()
    config.require(
        kind != "uniform" and whole, f"--search {name}: an integer, write {name}=int:LOW:HIGH or log:LOW:HIGH"
    )
    return replace(dimension, whole=True)


def _check_values(
    agent: ModuleType, plain: Any, space: Sequence[Dimension], values: Mapping[str, Sequence[Any]]
) -> None:
    """Check the ends one at a time, and that a run with the defaults would start.

    Raises:
        ValueError, RuntimeError, MemoryError: as the agent does.
    """
    resolve = getattr(agent, "resolve", lambda args: args)
    args = resolve(plain)
    config.require(getattr(args, "eval_every", 1) > 0, "--eval-every 0: the score is made of evaluations")
    for dimension in space:
        for value in values[dimension.name]:
            resolve(replace(plain, **{dimension.name: value}))
    for part in agent.build(args) if hasattr(agent, "build") else ():
        if hasattr(part, "close"):  # simulators in processes of their own
            part.close()


def _place(default: Any, dimension: Dimension, values: Sequence[Any]) -> tuple[str, bool]:
    """Return a default as text, and whether it lies in the space; there it is written as the space does."""
    if dimension.options:
        for option, value in zip(dimension.options, values, strict=False):
            if value == default:
                return option, True
    elif isinstance(default, (int, float)) and dimension.low <= default <= dimension.high:
        return dimension.text(default), True
    if isinstance(default, bool):
        return ON[0] if default else OFF[0], False
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default), False
