"""What an agent's program says about a command line, asked in a process of its own.

Benchmarks import no agent: that takes seconds, and a context on a GPU. So whoever has a question starts a process
that loads the program, answers and ends.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from agents import config

CHECKED = "all of them are legal"


def load(script: str) -> ModuleType:
    """Load a program as `python script` would, but for what it does when it is run."""
    path = Path(script)
    sys.path.insert(0, str(path.parent))
    module = ModuleType("asked_agent")
    module.__file__ = script
    sys.modules["asked_agent"] = module
    exec(compile(path.read_bytes(), script, "exec"), module.__dict__)  # a program leaves no bytecode beside it
    return module


def refusal(done: subprocess.CompletedProcess[str], script: str) -> str:
    """Return in one line why a program that was asked has not answered."""
    said = done.stderr.strip().splitlines()
    refusals = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    last = said[-1] if said else f"exit status {done.returncode}"
    return refusals[-1] if refusals else f"{script} cannot be asked for its settings: {last}"


# ---- whether runs would start ----------------------------------------------------------------------------------------


def can_be_asked(script: str) -> bool:
    """Whether a program has settings as the agents here have, and may be loaded without being run."""
    body = ast.parse(Path(script).read_bytes()).body
    settings = any(isinstance(node, ast.ClassDef) and node.name == "Args" for node in body)
    return settings and any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in body)


def check(
    script: str, lines: Mapping[str, Sequence[str]], env: Mapping[str, str], here: bool, gpu: bool = False
) -> None:
    """Let a program read command lines that it will get, in one process for all: a twentieth of a second for each.

    A program that is none of ours in shape is not asked: loading it might run it.

    Args:
        script: the program.
        lines: flags, by the name of who will get them.
        env: environment variables of the runs.
        here: whether they will run on this machine, so that devices and tasks can be looked up too.
        gpu: whether they are to find a GPU there.

    Raises:
        ValueError: it refuses one; in its own words.
    """
    if not can_be_asked(script):
        return
    code = "from benchmarks import programs; programs.answer()"
    flags = {name: [*words] for name, words in lines.items()}
    request = json.dumps({"script": script, "lines": flags, "here": here, "gpu": gpu})
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, input=request, env=dict(env))
    said = done.stdout.strip().splitlines()
    if said[-1:] != [CHECKED]:
        asked = next((line.removeprefix("reading ") for line in reversed(said) if line.startswith("reading ")), "")
        why = refusal(done, script) if done.returncode else "--help starts no run"
        raise ValueError(f"{asked}: {why}" if asked else why)


def answer() -> None:
    """Read what standard input asks for; say so, or fail in one line. The other side of `check`."""
    asked = json.loads(sys.stdin.read())
    agent = load(asked["script"])
    for name, words in asked["lines"].items():
        print("reading", name, flush=True)
        args = config.parse(agent.Args, getattr(agent, "presets", None), words).args
        if not asked["here"]:
            continue
        try:
            device = getattr(args, "device", "")
            args = agent.resolve(args) if hasattr(agent, "resolve") else args
            if asked["gpu"] and device == "auto" and args.device == "cpu":
                raise ValueError(
                    f"torch finds no GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}; --gpus none for the CPU"
                )
            if hasattr(agent, "envs"):  # else it has tasks of its own
                agent.envs.find(args.env_id, getattr(args, "backend", "auto"), getattr(args, "device", "cpu"))
        except (ValueError, RuntimeError) as error:
            config.fail(str(error))
    print(CHECKED, flush=True)
