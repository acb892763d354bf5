"""The agent of a run directory, ready to act, and how fast the clock of its task runs: what play and export share."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from agents import machine
from agents.checkpoint import Checkpoint, RunError, newest_checkpoint, open_checkpoint, read_json, step_dirs
from envs.base import VecEnv
from envs.families import ATARI, DMC, tasks_in

T = TypeVar("T")

# (task patterns, steps per second): DeepMind Control's own time steps, Gymnasium's, EnvPool's frame skip of Atari.
RATES: tuple[tuple[tuple[str, ...], float], ...] = (
    (("AcrobotSwingup*", "Cartpole[BST]*", "CheetahRun*", "Manipulator*", "Stacker*"), 100.0),
    (("Dog*",), 1 / 0.015),
    (("Humanoid[SWR]*-v1", "Walker[SWR]*"), 40.0),
    (("FishSwim*", "FishUpright*"), 25.0),
    (("SwimmerSwimmer*",), 1 / 0.03),
    (DMC, 50.0),
    (("Hopper-v*", "Walker2d-v*"), 125.0),
    (("Humanoid-v*", "HumanoidStandup-v*"), 1 / 0.015),
    (("Ant-v*", "HalfCheetah-v*", "InvertedDoublePendulum-v*", "Pusher-v*"), 20.0),
    (("InvertedPendulum-v*", "Swimmer-v*"), 25.0),
    (("Reacher-v*", "CartPole-v*", "h1-*", "h1hand-*"), 50.0),
    (("MetaWorld/*",), 80.0),
    (ATARI, 15.0),
    (("PointMass-v0", "PointMassPrivileged-v0"), 10.0),
)


def look_up(rows: Sequence[tuple[tuple[str, ...], T]], task: str, default: T) -> T:
    """Return the value of the first row with a pattern that fits a task, without its prefix."""
    names = (task, task.removeprefix("MuJoCoPlayground/"))
    fits = (value for patterns, value in rows if any(fnmatchcase(n, p) for n in names for p in patterns))
    return next(fits, default)


def agent_module(run_dir: Path) -> ModuleType:
    """Return the file of this folder that has trained a run.

    Raises:
        RunError: there is no run, or it was trained by something else.
    """
    if not (run_dir / "config.json").is_file():
        raise RunError(f"{run_dir} holds no run: there is no config.json")
    record = read_json(run_dir / "manifest.json")
    name = record.get("agent")
    # A name from a file: only a module that lies here, and only one that can build an agent.
    known = isinstance(name, str) and name.isidentifier() and (Path(__file__).parent / f"{name}.py").is_file()
    module = importlib.import_module(f"agents.{name}") if known else None
    if module is None or not all(hasattr(module, part) for part in ("Args", "build")):
        raise RunError(f"{run_dir} was trained by {name!r}, which is no agent in {Path(__file__).parent}")
    return module


def find_checkpoint(run_dir: Path, step: int | None) -> tuple[Checkpoint, list[str]]:
    """Return a checkpoint, the newest good one if no step is given, and a line about each newer one that is damaged.

    Raises:
        RunError: there is none, or the one that was asked for is damaged.
    """
    if step is None:
        return newest_checkpoint(run_dir)
    saved = {int(path.name.removeprefix("step_")): path for path in step_dirs(run_dir)}
    if step not in saved:
        have = ", ".join(map(str, saved)) or "none"
        raise RunError(f"--step {step}: {run_dir} has no such checkpoint, it has {have}")
    return open_checkpoint(saved[step]), []


def settings(trained: Any, device: str = "auto", env_id: str | None = None, backend: str | None = None) -> Any:
    """Return the settings of a run, changed to act: one environment of each task, and a replay buffer for nothing.

    Args:
        trained: settings of the run.
        device: where the agent lives; auto is the run's device where there is one here, else the CPU.
        env_id: another task than the run's.
        backend: another simulator.

    Raises:
        ValueError: the device is unknown or absent.
    """
    try:
        place = machine.resolve_device(trained.device if device == "auto" else device)
    except ValueError:
        if device != "auto":
            raise
        place = "cpu"
    changes: dict[str, Any] = {
        "device": place,
        "env_id": env_id or trained.env_id,
        "backend": backend or trained.backend,
        "num_envs": tasks_in(env_id or trained.env_id),
        "eval_every": 0,
        "video_every": 0,
        "compile": False,
        "symmetry": False,  # of learning alone
        "buffer_size": tasks_in(env_id or trained.env_id) * (getattr(trained, "n_step", 1) + 1),
    }
    return replace(trained, **{f.name: changes[f.name] for f in fields(trained) if f.name in changes})


def load_agent(module: ModuleType, args: Any, checkpoint: Checkpoint) -> Any:
    """Return the agent of a checkpoint.

    Raises:
        ValueError: task or settings do not fit it.
        RunError: it cannot be read, or another version has written it.
    """
    agent, *others = module.build(args)
    for env in others:
        if isinstance(env, VecEnv):
            env.close()
    try:
        state = checkpoint.load("agent", agent.device)
        own = agent.state_dict()["modules"]
        for name in own:  # a running return for each training environment, which there is only one of
            if name.startswith("reward_scale."):
                state["modules"][name] = own[name]
        agent.load_state_dict(state)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{checkpoint.path} does not hold what this version of the agent saves: {error!r}") from error
    return agent


def trained_policy(
    module: ModuleType, args: Any, run_dir: Path, step: int | None, doing: str = "playing"
) -> tuple[Any, int]:
    """Return the agent of a run and the frames it was trained for; damaged checkpoints are named on stderr.

    `doing` is what that line says of the checkpoint that is used instead.

    Raises:
        ValueError, RunError: there is none that can be used.
    """
    checkpoint, complaints = find_checkpoint(run_dir, step)
    try:
        agent = load_agent(module, args, checkpoint)
    except RunError:
        if step is not None or checkpoint.path.exists():
            raise
        checkpoint, complaints = find_checkpoint(run_dir, step)  # a run that trains has just deleted its oldest one
        agent = load_agent(module, args, checkpoint)
    for complaint in complaints:
        print(f"{complaint}; {doing} {checkpoint.path.name}", file=sys.stderr)
    return agent, checkpoint.step
