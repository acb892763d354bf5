"""`python -m envs.list [PATTERN] [--backend B]` lists the tasks that `envs.make` can make, in a table."""

import argparse
import io
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatchcase

from gymnasium.spaces import Box, Discrete

import envs

HEADS = ("task", "backend", "observation", "action", "steps")


def main(arguments: list[str] | None = None) -> int:
    """Print a line per task and backend. Return 0, or 1 if none matches."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.list",
        description="List the tasks of all installed backends: shape of an observation (the critic's too where it sees "
        "more), actions, steps until an episode is truncated. Where several backends have a task, --backend auto takes "
        "the one that is named first, on a GPU one that simulates there.",
    )
    parser.add_argument("pattern", nargs="?", default="", help="part of a name, * stands for anything; case is ignored")
    parser.add_argument("--backend", choices=envs.BACKENDS, help="only this one")
    parser.add_argument("--names", action="store_true", help="names alone, at once: some hundred tasks take seconds")
    args = parser.parse_args(arguments)

    missing = {name: backend for name, backend in envs.BACKENDS.items() if name not in envs.backends()}
    names = [name for name in envs.backends() if args.backend in (None, name)]
    pattern = f"*{args.pattern.lower()}*"
    found = [(name, task) for name in names for task in envs.tasks(name) if fnmatchcase(task.lower(), pattern)]
    widths = [max(map(len, column), default=0) for column in ([t for _, t in found], [n for n, _ in found])]
    widths = [max(width, len(head)) for width, head in zip([*widths, 0, 0], HEADS, strict=False)]
    widths[2:] = [24, 10]
    if found and not args.names:
        print(line(HEADS, widths))
    for name, task in found:
        print(task if args.names else line((task, name, *columns(task, name)), widths), flush=True)
    for name, backend in missing.items():
        if args.backend in (None, name):
            print(f"the backend {name} is not installed: {backend.install}", file=sys.stderr)
    if not found and args.pattern:
        print(f"no task matches {args.pattern!r}", file=sys.stderr)
    return 0 if found else 1


def line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Return the cells side by side, the last one as wide as it is."""
    return "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), cells[-1]]).rstrip()


def columns(task: str, backend: str) -> Iterator[str]:
    """Yield observation, action and steps of a task, or why it cannot be made here."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # engines talk while they load
        try:
            spec, why = envs.describe(task, backend), "known once made: python -m envs.check"
        except envs.TaskError as error:
            spec, why = None, str(error)
    if spec is None:
        yield from ("-", "-", why)
    else:
        critic = "" if spec.critic_obs_space == spec.obs_space else f" (critic {shape(spec.critic_obs_space)})"
        actions = spec.action_space
        yield shape(spec.obs_space) + critic
        yield f"{actions.n} ways" if isinstance(actions, Discrete) else shape(actions)
        yield {None: "no limit", 1: "varies"}.get(spec.max_episode_steps, str(spec.max_episode_steps))


def shape(space: Box) -> str:
    """Return `24` or `4x84x84 uint8`."""
    return "x".join(map(str, space.shape)) + (" uint8" if space.dtype == "uint8" else "")


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends without a traceback
    sys.exit(main())
