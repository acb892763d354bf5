"""What a new run starts from: networks and normalisers of another run of the same agent, on its task or on another one.

Or of a run of the authors' FastTD3 or of CleanRL's PPO, whose file is named instead of a directory:
`agents/published.py`.

    python agents/fasttd3.py --env-id WalkerRun-v1 --init-from runs/RUN_DIR
    python agents/fasttd3.py --env-id WalkerRun-v1 --init-from runs/RUN_DIR/checkpoints/step_000000080000
    python agents/fasttd3.py --env-id h1hand-walk-v0 --init-from models/h1hand-walk-v0__FastTD3__1_final.pt
    python agents/ppo.py --env-id Hopper-v4 --init-from runs/Hopper-v4__ppo__1__17/ppo_continuous_action.cleanrl_model

The settings that say what the networks compute come along and stand where a preset would; a flag that contradicts one
of them is refused. Optimisers, replay, exploration and schedules start afresh. The manifest notes the source, and a
resumed run does not look at it again.
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from agents import config
from agents.checkpoint import Checkpoint, RunArgs, RunError, newest_checkpoint, open_checkpoint, read_args, read_json
from agents.published import Published
from agents.published import read as read_published
from agents.ranks import Ranks
from agents.run import agent_name, goes_on
from envs.base import VecEnv

NETWORKS = (
    *("actor_hidden", "critic_hidden", "layer_norm", "activation", "share_hidden", "init_std", "state_dependent_std"),
    *("log_std_min", "log_std_max", "distributional", "atoms", "v_min", "v_max", "obs_norm", "obs_clip", "reward_norm"),
    *("sem", "bottleneck", "sem_actor", "sem_critic", "sem_position", "sem_actor_groups", "sem_actor_vertices"),
    *("sem_critic_groups", "sem_critic_vertices", "sem_temperature", "sem_learned_temperature"),
    *("sem_temperature_end", "torso", "task_embedding"),
)
"""settings of all agents that say what networks and normalisers compute"""
OF_EACH_ENVIRONMENT = ("reward_scale.running",)
"""what of the normalisers belongs to episodes under way, and starts afresh"""


class StartArgs(RunArgs, Protocol):
    """The settings that say how a run starts; the agents' dataclasses have them and more."""

    run_dir: str | None
    resume: str | None
    init_from: str | None


A = TypeVar("A", bound=StartArgs)


class Agent(Protocol):
    """What has networks."""

    modules: nn.ModuleDict
    ranks: Ranks
    device: torch.device


class Origin(NamedTuple):
    """A run that another one starts from."""

    run_dir: Path
    step_dir: Path | None
    """the checkpoint that was asked for; None for the newest good one"""
    task: str
    settings: dict[str, Any]
    """those of NETWORKS that the agent has"""
    published: Published | None = None
    """what is in the file, where it is one of other code"""

    def checkpoint(self) -> tuple[Checkpoint, list[str]]:
        """Return the checkpoint, and one line about each newer one that is damaged.

        Raises:
            RunError: there is none that is good.
        """
        return newest_checkpoint(self.run_dir) if self.step_dir is None else (open_checkpoint(self.step_dir), [])


def find(path: Path, args_class: type[A]) -> Origin:
    """Return the run that a path names, or the one that holds the checkpoint that it names.

    Raises:
        RunError: there is none, or it is of another agent or version.
    """
    if path.is_file():
        published = read_published(path, agent_name(args_class))
        return Origin(path, None, published.task, published.settings, published)
    step_dir = path if (path / "meta.json").is_file() else None
    run_dir = path.resolve().parents[1] if step_dir else path
    if not (run_dir / "config.json").is_file():
        raise RunError(f"--init-from {path}: no run and no checkpoint of one, there is no {run_dir / 'config.json'}")
    agent = read_json(run_dir / "manifest.json").get("agent")
    if agent != agent_name(args_class):
        raise RunError(
            f"--init-from {path}: its networks are those of {agent}, and {agent_name(args_class)} has others; "
            f"start from a run of agents/{agent_name(args_class)}.py"
        )
    args = read_args(run_dir, args_class)
    settings = {name: value for name, value in asdict(args).items() if name in NETWORKS}
    if settings.get("sem"):
        settings["bottleneck"] = "sem"  # which --sem stands for
    return Origin(run_dir, step_dir, args.env_id, settings)


def parse(args_class: type[A], presets: config.Presets[A], argv: Sequence[str] | None) -> config.Parsed[A]:
    """Return `config.parse`, where --init-from is a preset too: the strongest one, which no flag may contradict.

    A run in --run-dir that goes on has its own settings, and its source may be gone.
    """
    inherited: dict[str, Any] = {}
    source = ""

    def with_origin(args: A) -> Iterable[tuple[str, config.Overrides]]:
        nonlocal source
        used = list(presets(args))
        if args.init_from is None or args.resume is not None:
            return used
        source = args.run_dir if args.run_dir is not None and goes_on(args.run_dir) else args.init_from
        try:
            inherited.update(find(Path(source), args_class).settings)
        except RunError as error:
            raise ValueError(str(error)) from error
        return [*used, ("init-from", inherited)]

    parsed = config.parse(args_class, with_origin, argv)
    given = {name: getattr(parsed.args, name) for name in inherited if name in parsed.explicit}
    others = {name: value for name, value in given.items() if value != inherited[name]}
    if others:
        here, there = (" ".join(spell(name, values[name]) for name in others) for values in (others, inherited))
        config.fail(f"{here}: the networks of {source} are those of {there}; leave out what differs, or --init-from")
    return parsed


def spell(name: str, value: Any) -> str:
    """Return a setting as the words of a command line."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return " ".join([f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))])


def start_from(args: StartArgs, agent: Agent, env: VecEnv) -> dict[str, Any] | None:
    """Give an agent the networks and normalisers of another run; returns what the manifest says about it.

    `env` is what it is going to act in.

    Does nothing and returns None where a run is to start from scratch, or goes on in its own directory.

    Raises:
        ValueError: they do not fit, which is due to the task: names the first tensor that differs.
        RunError: there is no good checkpoint.
    """
    if args.init_from is None or (args.run_dir is not None and goes_on(args.run_dir)):
        return None
    origin = find(Path(args.init_from), type(args))
    theirs, record = read(origin, agent)
    mine = agent.modules.state_dict()
    lacking = origin.published.lacking if origin.published is not None else ()
    afresh = [name for name in mine if name in OF_EACH_ENVIRONMENT or name.startswith(lacking)]
    theirs = {**theirs, **{name: mine[name] for name in afresh}}
    for name in [*mine, *theirs]:
        here, there = (tuple(x[name].shape) if name in x else None for x in (mine, theirs))
        if here != there:
            raise ValueError(
                f"--init-from {args.init_from}: its networks do not fit {args.env_id}, {name} is {there or 'absent'} "
                f"there and {here or 'absent'} here; choose a task with observations and actions of the sizes of "
                f"{origin.task}"
            )
        if not bool(theirs[name].isfinite().all()):
            raise ValueError(f"--init-from {args.init_from}: {name} is not finite, that run has diverged")
    if agent.ranks.first and any(name.startswith("obs_norm.") for name in afresh):
        print(f"{args.init_from} has no statistics of observations: they start afresh", file=sys.stderr)
    if origin.published is not None and origin.published.own_units:
        theirs = in_range(theirs, env)
    agent.modules.load_state_dict(theirs)
    return {**record, "task": origin.task, "settings": origin.settings}


def in_range(modules: Mapping[str, Tensor], env: VecEnv) -> Mapping[str, Tensor]:
    """Return the networks of a policy that gives actions in the task's own units, changed to give them in [-1, 1]."""
    if env.action_bounds is None:
        return modules
    bias = modules["actor.head.bias"]
    low, high = (torch.from_numpy(bound).to(bias.device, torch.float64) for bound in env.action_bounds)
    reach = torch.where(high > low, (high - low) / 2, 1.0)  # what cannot move has no range to scale
    changed = {
        "actor.head.weight": modules["actor.head.weight"] / reach[:, None],
        "actor.head.bias": (bias - (high + low) / 2) / reach,
        "actor.log_std": modules["actor.log_std"] - reach.log(),
    }
    return {**modules, **{name: x.float() for name, x in changed.items()}}


def read(origin: Origin, agent: Agent) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Return networks and normalisers of an origin, and where they are from.

    Raises:
        RunError: there is no good checkpoint.
    """
    if origin.published is not None:
        sha256 = hashlib.sha256(origin.run_dir.read_bytes()).hexdigest()
        record = {"path": str(origin.run_dir.resolve()), "step": origin.published.step, "sha256": sha256}
        return {name: x.to(agent.device) for name, x in origin.published.modules.items()}, record
    checkpoint, complaints = origin.checkpoint()
    if agent.ranks.first:
        for complaint in complaints:
            print(f"{complaint}; starting from {checkpoint.path.name}", file=sys.stderr)
    state = checkpoint.load("agent", agent.device)
    modules = state.get("modules") if isinstance(state, dict) else None
    if not isinstance(modules, Mapping) or not all(isinstance(x, Tensor) for x in modules.values()):
        raise RunError(f"{checkpoint.path} does not hold what this version of the agent saves")
    sha256 = checkpoint.meta["sha256"]["agent.pt"]
    return modules, {"path": str(checkpoint.path.resolve()), "step": checkpoint.step, "sha256": sha256}
