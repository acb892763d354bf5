"""`python -m envs.check TASK` tells whether an environment keeps the contract, and if not, what to do about it.

It acts at random, at the bounds of the actions too, and holds every step against the rules in `envs.base`. For an
environment of your own: `python -m envs.check mymodule:MyEnv`. Run it with a short time limit as well
(`--option max_episode_steps=20`), so that truncation is seen.
"""

import argparse
import ast
import hashlib
import io
import pickle
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

import envs
from envs.base import Step, TaskError, VecEnv

MakeFn = Callable[[int, int], VecEnv]
"""(num_envs, seed) -> VecEnv"""

DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.uint8): torch.uint8}
STREAM_STEPS = 32  # steps in which two random streams have shown that they differ
KEPT_STEPS = 32  # steps whose tensors are looked at again later
FAR = 500_009  # a seed this much further is nobody's neighbour


class Report(NamedTuple):
    """What `examine` has found."""

    violations: list[str]
    """one line per broken rule: what was seen where, and what to do"""
    unseen: list[str]
    """one line per rule that this run could not try"""


def check(make_fn: MakeFn, steps: int = 300, num_envs: int = 4, seed: int = 0, random_start: bool = True) -> list[str]:
    """Return the violations of the contract, one line each; empty if there are none. See `examine`."""
    return examine(make_fn, steps, num_envs, seed, random_start).violations


def examine(make_fn: MakeFn, steps: int = 300, num_envs: int = 4, seed: int = 0, random_start: bool = True) -> Report:
    """Return which rules of the contract an environment breaks, and which ones could not be tried.

    Args:
        make_fn: (num_envs, seed) -> VecEnv; called up to eight times.
        steps: of the main rollout.
        num_envs: N, at least 2, since environments are compared with each other.
        seed: of the environment and of the actions.
        random_start: whether anything in the task is random. If not, different seeds are not compared.
    """
    if steps < 2 or num_envs < 2:
        raise ValueError(f"steps is {steps} and num_envs is {num_envs}, both must be at least 2")
    step_random_states()  # one that was just seeded, as the environment will seed it, would stay the same
    before = random_states()
    env = make_fn(num_envs, seed)
    with closing(env):
        violations = list(space_violations(env, num_envs))
        if violations:
            return Report(violations, [])
        actions = list(draw_actions(env, steps, seed))
        inspector = Inspector(env)
        trace = inspector.follow(actions)
        violations += inspector.violations.values()
        if inspector.stopped:  # with a wrong shape or type, whatever else can be said is noise
            return Report(violations, [])
        unseen = list(inspector.unseen())
        if env.deterministic:
            violations += repeat_violations(make_fn, num_envs, seed, actions, trace)
        else:
            unseen.append("repeated rollouts and snapshots: the environment says that it is not deterministic")
        if env.deterministic and env.snapshots:
            violations += snapshot_violations(make_fn, env, seed, actions[:STREAM_STEPS])
        elif env.deterministic:
            unseen.append("snapshots: the environment has none")
    violations += close_violations(env)
    violations += [
        f"the global random generator of {name} was used or seeded: draw from a generator of your own"
        for name, state in random_states().items()
        if state != before.get(name, state)
    ]
    if random_start:
        found, not_tried = stream_violations(make_fn, num_envs, seed)
        violations += found
        unseen += not_tried
    else:
        unseen.append("random streams: nothing in the task is random")
    return Report(violations, unseen)


def space_violations(env: VecEnv, num_envs: int) -> Iterator[str]:
    """Yield what is wrong with the attributes of an environment."""
    names = ["num_envs", "device", "obs_space", "critic_obs_space", "action_space", "max_episode_steps"]
    missing = [name for name in names if not hasattr(env, name)]
    if missing:
        yield f"the environment has no attribute {', '.join(missing)}: set it in __init__, see envs.base.VecEnv"
        return
    if env.num_envs != num_envs:
        yield f"num_envs is {env.num_envs}, but {num_envs} were asked for"
    if not isinstance(env.device, torch.device):
        yield f"device is {env.device!r}: make it a torch.device"
    elif env.device.type == "cuda" and env.device.index is None:
        yield "device is cuda without an index, which equals no tensor's device: make it cuda:0"
    for name in ("obs_space", "critic_obs_space"):
        space = getattr(env, name)
        if not isinstance(space, Box) or space.dtype not in DTYPES:
            yield f"{name} is {space}: make it a gymnasium Box of float32 (envs.base.vector_space), or uint8 for images"
    action = env.action_space
    if isinstance(action, Box):
        unit = action.dtype == np.float32 and len(action.shape) == 1
        if not unit or not (action.low == -1).all() or not (action.high == 1).all():
            yield f"action_space is {action}: make it Box(-1, 1, (A,), float32) and map to the task's range in step()"
    elif not isinstance(action, Discrete) or action.start != 0:
        yield f"action_space is {action}: make it Box(-1, 1, (A,), float32) or Discrete(n) that starts at 0"
    limit = env.max_episode_steps
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        yield f"max_episode_steps is {limit!r}: make it an int of at least 1, or None if nothing is ever truncated"
    if (bounds := env.action_bounds) is not None:
        try:
            low, high = np.asarray(bounds[0], np.float64), np.asarray(bounds[1], np.float64)
            known = isinstance(bounds, tuple) and len(bounds) == 2 and low.shape == high.shape == action.shape
            known = known and bool(np.isfinite([low, high]).all() and (low <= high).all())
        except (TypeError, ValueError, IndexError):
            known = False
        if not known:
            told = " ".join(str(bounds).split())
            yield f"action_bounds are {told}: make them two arrays of {action.shape}, what -1 and 1 are in the task"


def draw_actions(env: VecEnv, steps: int, seed: int, same: bool = False) -> Iterator[Tensor]:
    """Yield random actions of N environments: first the lowest, then the highest, then uniform ones.

    Args:
        env: whose actions to draw.
        steps: how many.
        seed: of the draws.
        same: whether all environments do the same.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = 1 if same else env.num_envs
    space = env.action_space
    for step in range(steps):
        if isinstance(space, Box):
            action = 2 * torch.rand(rows, *space.shape, generator=generator, dtype=torch.float32) - 1
            low, high = -1, 1
        else:
            low, high = 0, int(space.n) - 1
            action = torch.randint(high + 1, (rows,), generator=generator)
        if step < 2:
            action.fill_((low, high)[step])
        yield action.repeat(env.num_envs // rows, *[1] * (action.ndim - 1)).to(env.device)


class Inspector:
    """Follows one rollout of an environment, and notes the first violation of each rule."""

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.violations: dict[str, str] = {}
        """by rule"""
        self.stopped = False
        """whether a step was so wrong in form that there was no way to go on"""
        self._limit = env.max_episode_steps
        self._privileged = env.privileged
        self._clock = torch.zeros(env.num_envs, dtype=torch.int64)
        self._since_truncation = torch.full((env.num_envs,), sys.maxsize // 2)
        self._kept: list[tuple[str, Tensor, Tensor]] = []
        self._count = dict.fromkeys(("ended", "terminated", "truncated", "stale"), 0)
        self._step = 0

    def follow(self, actions: Iterable[Tensor]) -> list[str]:
        """Reset, apply the actions, look at everything, and return the digests of what came."""
        first = self.env.reset()
        if not (isinstance(first, tuple) and len(first) == 2):
            self._stop(f"reset() returns {type(first).__name__}: return the tuple (obs, critic_obs)")
            return []
        self._look_at_form(dict(zip(("obs", "critic_obs"), first, strict=True)))
        if self.stopped:
            return []
        self._look_at_numbers({"the first obs": first[0], "the first critic_obs": first[1]})
        self._look_at_views("critic_obs", first[0], first[1])
        self._keep({"obs of reset()": first[0], "critic_obs of reset()": first[1]})
        trace = [digest(first)]
        acted_on = first
        for action in actions:
            self._step += 1
            sent = action.clone()
            step = self.env.step(action)
            if not torch.equal(action, sent):
                self._note("action", f"step() has changed the action it was given, {self._at()}: work on a copy")
            if not isinstance(step, Step):
                self._stop(f"step() returns {type(step).__name__}: return an envs.base.Step")
                return trace
            self._look_at_form({name: getattr(step, name) for name in Step._fields if name != "metrics"})
            if not self.stopped:
                self._look_at_metrics(step)
            if self.stopped:
                return trace
            self._look_at_rules(step, acted_on)
            self._look_at_clock(step)
            if self._step <= KEPT_STEPS:
                values = {name: getattr(step, name) for name in Step._fields if name != "metrics"} | dict(step.metrics)
                self._keep({f"{name} of step {self._step}": value for name, value in values.items()})
            trace.append(digest(step))
            acted_on = (step.obs, step.critic_obs)
        self._look_back()
        return trace

    def unseen(self) -> Iterator[str]:
        """Yield the rules that the rollout gave no occasion to try."""
        if not self._count["terminated"]:
            yield f"termination: no episode terminated in {self._step} steps"
        if self._limit is not None and not self._count["truncated"]:
            yield (
                f"truncation: no episode reached the time limit of {self._limit} in {self._step} steps; "
                "try a shorter limit or more steps"
            )

    def _look_at_form(self, tensors: dict[str, Any]) -> None:
        env = self.env
        flag = (torch.bool, ())
        obs = DTYPES[env.obs_space.dtype], env.obs_space.shape
        critic_obs = DTYPES[env.critic_obs_space.dtype], env.critic_obs_space.shape
        forms = {"obs": obs, "next_obs": obs, "critic_obs": critic_obs, "next_critic_obs": critic_obs}
        forms |= {"reward": (torch.float32, ()), "terminated": flag, "truncated": flag, "valid": flag}
        for name, value in tensors.items():
            dtype, shape = forms[name]
            self._look_at_tensor(name, value, dtype, (env.num_envs, *shape))

    def _look_at_tensor(self, name: str, value: Any, dtype: torch.dtype | None, shape: tuple[int, ...]) -> None:
        if not isinstance(value, Tensor):
            self._stop(f"{name} is a {type(value).__name__}, {self._at()}: return a torch tensor")
        elif tuple(value.shape) != shape:
            self._stop(f"{name} has shape {tuple(value.shape)}, expected {shape}, {self._at()}")
        elif dtype is not None and value.dtype != dtype:
            self._stop(f"{name} is {value.dtype}, expected {dtype}, {self._at()}: convert it")
        elif value.device != self.env.device:
            self._stop(f"{name} is on {value.device}, expected {self.env.device}, {self._at()}: move it")
        elif value.requires_grad:
            self._note("grad", f"{name} requires a gradient, {self._at()}: compute step() under torch.no_grad()")

    def _look_at_metrics(self, step: Step) -> None:
        for name, value in step.metrics.items():
            dtype = {"success": torch.bool, "game_over": torch.bool}.get(name)
            self._look_at_tensor(f"metrics[{name!r}]", value, dtype, (self.env.num_envs,))

    def _look_at_numbers(self, tensors: dict[str, Tensor]) -> None:
        for name, value in tensors.items():
            bad = ~rows(value.isfinite()).all(1)
            self._note_rows(
                "finite", bad, f"{name} has numbers that are not finite", "follow what envs.base says of Step.valid"
            )

    def _look_at_views(self, name: str, obs: Tensor, critic_obs: Tensor) -> None:
        if not self._privileged and critic_obs is not obs:
            self._note(
                "views",
                f"{name} is another tensor than {name.replace('critic_', '')}, {self._at()}, but the spaces are equal: "
                "return the same tensor twice, or give the privileged view a critic_obs_space of its own",
            )

    def _look_at_rules(self, step: Step, acted_on: tuple[Tensor, Tensor]) -> None:
        names = ("obs", "critic_obs", "reward", "next_obs", "next_critic_obs")
        self._look_at_numbers({name: getattr(step, name) for name in names})
        self._look_at_views("critic_obs", step.obs, step.critic_obs)
        self._look_at_views("next_critic_obs", step.next_obs, step.next_critic_obs)
        self._note_rows(
            "flags",
            step.terminated & step.truncated,
            "terminated and truncated are both True",
            "truncated &= ~terminated",
        )
        ended = step.terminated | step.truncated
        pairs = (("obs", step.obs, step.next_obs), ("critic_obs", step.critic_obs, step.next_critic_obs))
        for name, now, successor in pairs:
            self._note_rows(
                f"successor {name}",
                differ(now, successor) & ~ended,
                f"{name} and next_{name} differ although nothing ended",
                "next_obs is the true successor of the action, and obs the same unless an episode has just begun",
            )
        sound_end = ended & step.valid
        self._count["ended"] += int(sound_end.sum())
        self._count["stale"] += int((~differ(step.obs, step.next_obs) & sound_end).sum())
        self._count["terminated"] += int(step.terminated.sum())

        broken = ~step.valid
        self._note_rows(
            "quarantine",
            broken & ~(step.truncated & (step.reward == 0)),
            "`valid` is False, but reward is not 0 or truncated not True",
            "make it a step with nothing to learn from, see Step.valid in envs.base",
        )
        unlike = differ(step.next_obs, acted_on[0]) | differ(step.next_critic_obs, acted_on[1])
        self._note_rows(
            "quarantine obs",
            broken & unlike,
            "`valid` is False, but next_obs is not the observation that was acted on",
            "put that there, so that a learner never sees a broken number",
        )

    def _look_at_clock(self, step: Step) -> None:
        terminated, truncated, valid = (flag.cpu() for flag in (step.terminated, step.truncated, step.valid))
        self._clock += 1
        self._since_truncation += 1
        by_clock = truncated & valid
        self._count["truncated"] += int(by_clock.sum())
        if self._limit is None:
            self._note_rows(
                "clock", by_clock, "truncated is True, but max_episode_steps is None", "say how long an episode may be"
            )
            return
        self._note_rows(
            "apart",
            by_clock & (self._since_truncation < self._limit),
            f"two truncations are less than max_episode_steps = {self._limit} steps apart",
            "the replay buffer relies on it; say the shortest limit, or 1 if it is unknown",
        )
        over = terminated
        if "game_over" in step.metrics:
            over = step.metrics["game_over"].cpu()  # a lost life does not stop the clock of the game
        elif self._limit > 1:
            self._note_rows(
                "early",
                by_clock & (self._clock < self._limit),
                f"truncated is True before the time limit, max_episode_steps = {self._limit}",
                "if the task ended, it is terminated; else say the right limit, or 1 if it is unknown",
            )
            self._note_rows(
                "late",
                ~(terminated | truncated) & (self._clock >= self._limit),
                f"an episode goes on after its time limit, max_episode_steps = {self._limit}",
                "truncate on that very step, or say the right limit",
            )
        self._clock[over | truncated] = 0
        self._since_truncation[by_clock] = 0

    def _keep(self, tensors: dict[str, Tensor]) -> None:
        self._kept += [(name, value.detach(), value.detach().clone()) for name, value in tensors.items()]

    def _look_back(self) -> None:
        for name, value, copy in self._kept:
            if not torch.equal(value.nan_to_num(), copy.nan_to_num()):
                self._note("overwritten", f"{name} was overwritten by a later step: return fresh tensors (clone)")
        ended, stale = self._count["ended"], self._count["stale"]
        if 2 * stale > ended:
            self._note(
                "fresh",
                f"obs equals next_obs at {stale} of {ended} ends of episodes: obs must be the first observation "
                "of the next episode (reset within the step), and next_obs the last one of the old, before the reset",
            )

    def _at(self) -> str:
        return f"in step {self._step}" if self._step else "in reset()"

    def _stop(self, message: str) -> None:
        self.stopped = True
        self._note(message, message)

    def _note(self, rule: str, message: str) -> None:
        self.violations.setdefault(rule, message)

    def _note_rows(self, rule: str, bad: Tensor, what: str, advice: str) -> None:
        if rule not in self.violations and bool(bad.any()):
            row = int(bad.nonzero()[0])
            self._note(rule, f"{what}, {self._at()} of environment {row}: {advice}")


def repeat_violations(
    make_fn: MakeFn, num_envs: int, seed: int, actions: list[Tensor], trace: list[str]
) -> Iterator[str]:
    """Yield what is not repeated when the rollout that gave the trace is run again, in three ways."""
    with closing(make_fn(num_envs, seed)) as env:
        again = play(env, actions)
        if again != trace:
            yield (
                f"the same seed and actions give another rollout, from step {first_difference(again, trace)} on: take "
                "all randomness from the seed, or say deterministic = False"
            )
            return
    with closing(make_fn(num_envs, seed)) as env:
        split = play(env, actions, split=True)
        if split != trace:
            yield f"step_send() and step_recv() differ from step(), from step {first_difference(split, trace)} on"
        restarted = play(env, actions, seed=seed)
        if restarted != trace:
            yield (
                f"reset(seed) does not repeat the rollout of a new environment with that seed, from step "
                f"{first_difference(restarted, trace)} on: start all random streams and clocks afresh"
            )


def snapshot_violations(make_fn: MakeFn, env: VecEnv, seed: int, actions: list[Tensor]) -> Iterator[str]:
    """Yield what is wrong with going on from `state_dict` in another environment."""
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    try:
        state = torch.load(file, weights_only=True)
    except pickle.UnpicklingError:
        yield "state_dict() holds more than tensors, numbers, strings, dicts and lists: checkpoints take only these"
        return
    onward = [digest(env.step(action)) for action in actions]
    with closing(make_fn(env.num_envs, seed + 1)) as other:
        other.load_state_dict(state)
        resumed = [digest(other.step(action)) for action in actions]
    if resumed != onward:
        yield (
            f"after load_state_dict() the rollout differs, from step {first_difference(resumed, onward) + 1} on: "
            "state_dict() must hold the state of episodes, clocks and random streams, or say snapshots = False"
        )


def stream_violations(make_fn: MakeFn, num_envs: int, seed: int) -> tuple[list[str], list[str]]:
    """Return what is wrong with the random streams of environments, and what could not be told."""

    def episodes(of_seed: int) -> list[str]:
        with closing(make_fn(num_envs, of_seed)) as env:
            return play_rows(env, list(draw_actions(env, STREAM_STEPS, seed, same=True)))

    here, second, third, far = (episodes(seed + offset) for offset in (0, 1, 2, FAR))
    if here == second == far:
        return [
            f"the seeds {seed}, {seed + 1} and {seed + FAR} give the same rollout: use the seed (if nothing in the "
            "task is random, check it with --fixed-start)"
        ], []
    if len(set(here)) == 1:
        return ["all environments play the same episode: give each a random stream of its own"], []
    if len(set(here + far)) < 2 * num_envs:
        return [], ["random streams: different seeds often give the same episode, there are too few of them"]
    # Where there are few different episodes two may be equal by chance, but not the same two from seed to seed.
    shared = twins(here, second) & twins(second, third)
    if shared:
        return [
            f"{len(shared)} of {num_envs} environments play the same episode as another one with the next seed "
            f"({seed} and {seed + 1}): do not count up from the seed, use envs.base.spawn_seeds"
        ], []
    return [], []


def twins(one: list[str], other: list[str]) -> set[tuple[int, int]]:
    """Return the pairs of indices of equal entries."""
    return {(i, j) for i, left in enumerate(one) for j, right in enumerate(other) if left == right}


def close_violations(env: VecEnv) -> Iterator[str]:
    """Yield what goes wrong when a closed environment is closed again."""
    try:
        env.close()
    except Exception as error:  # whatever a simulator raises
        yield f"the second close() raises {type(error).__name__} ({error}): make it do nothing"


def play(env: VecEnv, actions: Iterable[Tensor], seed: int | None = None, split: bool = False) -> list[str]:
    """Return the digests of a reset and of the steps that follow."""
    trace = [digest(env.reset(seed))]
    for action in actions:
        if split:
            env.step_send(action)
        trace.append(digest(env.step_recv() if split else env.step(action)))
    return trace


def play_rows(env: VecEnv, actions: Iterable[Tensor]) -> list[str]:
    """Return for each environment the digest of all it observes."""
    hashes = [hashlib.blake2b() for _ in range(env.num_envs)]
    obs, _ = env.reset()
    for action in [*actions, None]:
        for row, values in zip(hashes, obs.cpu().numpy(), strict=True):
            row.update(values.tobytes())
        if action is not None:
            obs = env.step(action).obs
    return [row.hexdigest() for row in hashes]


def digest(values: Step | tuple[Tensor, ...]) -> str:
    """Return a text that is the same for the same bits."""
    metrics = values.metrics if isinstance(values, Step) else {}
    tensors = [value for value in values if isinstance(value, Tensor)] + [metrics[name] for name in sorted(metrics)]
    state = hashlib.blake2b("".join(sorted(metrics)).encode())
    for tensor in tensors:
        state.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def first_difference(one: list[str], other: list[str]) -> int:
    """Return the index of the first entry that differs."""
    return next(i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])


def rows(values: Tensor) -> Tensor:
    """[N, *] with all else in one dimension."""
    return values.reshape(len(values), -1)


def differ(one: Tensor, other: Tensor) -> Tensor:
    """[N] bool: whether two rows differ; what is not a number equals itself."""
    if one is other:
        return torch.zeros(len(one), dtype=torch.bool, device=one.device)
    return (rows(one) != rows(other)).logical_and_(~(rows(one).isnan() & rows(other).isnan())).any(1)


def step_random_states() -> None:
    """Draw one number from each of the global random number generators."""
    random.random()
    np.random.random()  # noqa: NPY002
    torch.rand(())
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.rand((), device=f"cuda:{device}")


def random_states() -> dict[str, Any]:
    """Return the states of the global random number generators, comparable, by name."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  it is the global one that matters
    states = {
        "python": random.getstate(),
        "numpy": (numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"]),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_initialized():  # asking would initialise it
        states["torch.cuda"] = [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    return states


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Return options from `key=value`; a value that is no Python literal is a string.

    Raises:
        TaskError: there is no `=`.
    """
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise TaskError(f"option {pair!r} must be key=value")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return options


def main(arguments: list[str] | None = None) -> int:
    """Check a task and print the report. Return 0 if all is well, 1 if a rule is broken, 2 if there is no such task."""
    parser = argparse.ArgumentParser(
        prog="python -m envs.check", description="Tell whether an environment keeps the contract of envs.base."
    )
    parser.add_argument("task", help="a name from `python -m envs`, or module:attribute for one of your own")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the task; repeatable")
    parser.add_argument("--fixed-start", action="store_true", help="nothing in the task is random")
    args = parser.parse_args(arguments)
    if args.num_envs < 2 or args.steps < 2:
        parser.error("--num-envs and --steps must be at least 2")

    backend = args.backend

    def make(num_envs: int, seed: int) -> VecEnv:
        nonlocal backend
        env = envs.make(args.task, num_envs, seed, args.device, args.backend, **options)
        backend = env.backend
        return env

    try:
        options = parse_options(args.option)
        report = examine(make, args.steps, args.num_envs, args.seed, not args.fixed_start)
    except TaskError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # of the environment: whatever it raises is the report
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}, line {frame.lineno}, in {frame.name}"
        print(f"{args.task} ({backend}) raises {type(error).__name__}: {' '.join(str(error).split())}\n  {where}")
        return 1
    count = len(report.violations)
    verdict = "keeps the contract" if not count else f"breaks {count} rule{'s' * (count > 1)} of the contract"
    print(f"{args.task} ({backend}) {verdict}")
    print("".join(f"  broken: {line}\n" for line in report.violations), end="")
    print("".join(f"  not tried: {line}\n" for line in report.unseen), end="")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
