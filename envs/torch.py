"""Reference environments in pure torch, the same code on the CPU and on CUDA, without a host synchronisation in `step`.

They are small, quick and exact: what they should do can be computed by hand, so they are what the agents are tested on.
`TorchEnv` owns the clock, resets, quarantine, seeds and snapshots; a task is three functions of its state.
"""

import inspect
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from envs.base import Mirror, Step, Symmetry, TaskError, VecEnv, spawn_seeds, vector_space

State = dict[str, Tensor]
"""[N, ...] tensors; never written into, so that observations of it stay as they are"""


def tasks() -> list[str]:
    """Names of the reference tasks."""
    return list(TASKS)


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` copies of a reference task.

    Args:
        task: a name from `tasks`.
        num_envs: N.
        seed: of the run.
        device: where the tensors live and the dynamics are computed.
        options: `max_episode_steps`, and what the task's class takes besides.

    Raises:
        TaskError: the task or an option is unknown, or the value of an option is not legal.
    """
    if task not in TASKS:
        raise TaskError(f"the torch backend has no task {task!r}, only {', '.join(TASKS)}")
    legal = [name for name in inspect.signature(TASKS[task]).parameters if name not in ("num_envs", "seed", "device")]
    for name in options:
        if name not in legal:
            raise TaskError(f"{task} has no option {name!r} (it has {', '.join(legal)})")
    return TASKS[task](num_envs, seed, device, **options)


class TorchEnv(VecEnv):
    """N environments whose dynamics are torch functions of a state. A task defines `start`, `advance` and `observe`.

    The class adds two entries to the state, which the functions may read: `elapsed`, the steps taken in the episode,
    and `episode`, the episodes ended since `reset`; both [N] int64. Noise is drawn with `uniform` and `normal`, for all
    environments at each call, so that what one of them draws does not depend on how the others fare.
    """

    backend = "torch"
    snapshots = True
    step_limit: ClassVar[int]
    """default of `max_episode_steps`"""
    max_episode_steps: int
    signs: ClassVar[Mapping[str, Sequence[int]]] = {}
    """of obs, critic_obs and action in a mirror, where the task is the same in one"""

    def __init__(self, num_envs: int, seed: int, device: torch.device, max_episode_steps: int | None = None) -> None:
        limit = self.step_limit if max_episode_steps is None else max_episode_steps
        if not isinstance(limit, int) or limit < 1:
            raise TaskError(f"max_episode_steps is {limit!r}, must be a whole number of at least 1")
        self.num_envs = num_envs
        self.device = device
        self.max_episode_steps = limit
        if self.signs:
            views = (torch.tensor(self.signs[name], dtype=torch.float32, device=device) for name in Symmetry._fields)
            self.symmetry = Symmetry(*(Mirror(torch.arange(len(sign), device=device), sign) for sign in views))
        self._generator = torch.Generator(device)
        self._seed(seed)
        self._state: State = {}

    @abstractmethod
    def start(self) -> State:
        """Return the first state of N new episodes."""

    @abstractmethod
    def advance(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor, Mapping[str, Tensor]]:
        """Return the next state, [N] reward, [N] terminated and the metrics. Writes into nothing."""

    @abstractmethod
    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """Return new tensors (obs, critic_obs), twice the same one where the task has no privileged view.

        Twice the same state looks twice the same: the noise of a sensor is part of the state.
        """

    def uniform(self, *shape: int) -> Tensor:
        """[N, *shape] in [0, 1)."""
        return torch.rand(self.num_envs, *shape, generator=self._generator, device=self.device, dtype=torch.float32)

    def normal(self, *shape: int) -> Tensor:
        """[N, *shape] from the standard normal distribution."""
        return torch.randn(self.num_envs, *shape, generator=self._generator, device=self.device, dtype=torch.float32)

    def _seed(self, seed: int) -> None:
        self._generator.manual_seed(spawn_seeds(seed, 1, self.backend)[0])

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first (obs, critic_obs) of N new episodes. A seed starts the random stream afresh."""
        if seed is not None:
            self._seed(seed)
        zero = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self._state = {**self.start(), "elapsed": zero, "episode": zero}
        return self.observe(self._state)

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Apply [N, A] float32 actions, clipped to [-1, 1], or [N] int64 ones.

        Raises:
            ValueError: the shape of the action is wrong.
            RuntimeError: no episode was started by `reset`.
        """
        shape = (self.num_envs, *(self.action_space.shape or ()))
        if action.shape != shape:
            raise ValueError(f"action has shape {tuple(action.shape)}, expected {shape}")
        if not self._state:
            raise RuntimeError("step() without an episode: call reset() first")
        if action.is_floating_point():
            action = action.float().clamp(-1, 1)

        old = self._state
        new, reward, terminated, metrics = self.advance(old, action)
        new |= {"elapsed": old["elapsed"] + 1, "episode": old["episode"]}
        next_views = self.observe(new)

        valid = finite(reward) & finite(next_views[0]) & finite(next_views[1])
        reward = torch.where(valid, reward, 0)
        metrics = {name: torch.where(valid, value, torch.zeros_like(value)) for name, value in metrics.items()}
        acted_on = self.observe(old)
        next_obs = pick(valid, next_views[0], acted_on[0])
        next_critic_obs = next_obs if next_views[1] is next_views[0] else pick(valid, next_views[1], acted_on[1])
        terminated = terminated & valid
        truncated = (new["elapsed"] >= self.max_episode_steps) & ~terminated | ~valid

        ended = terminated | truncated
        first = {**self.start(), "elapsed": torch.zeros_like(new["elapsed"]), "episode": new["episode"] + 1}
        self._state = {name: pick(ended, first[name], value) for name, value in new.items()}
        obs, critic_obs = self.observe(self._state)
        return Step(obs, critic_obs, reward, terminated, truncated, next_obs, next_critic_obs, valid, metrics)

    def state_dict(self) -> dict[str, Any]:
        """State of the episodes and of the random stream; tensors only."""
        state = {name: value.clone() for name, value in self._state.items()}
        return {"state": state, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an environment of the same task, N and device type.

        Raises:
            TaskError: the state is of another task or N.
        """
        loaded = {name: value.to(self.device, copy=True) for name, value in state["state"].items()}
        if loaded:
            counts = dict.fromkeys(("elapsed", "episode"), (self.num_envs,))
            expected = counts | {name: tuple(value.shape) for name, value in self.start().items()}
            found = {name: tuple(value.shape) for name, value in loaded.items()}
            if found != expected:
                raise TaskError(f"the state is of another task or number of environments: {found}, expected {expected}")
        self._state = loaded
        self._generator.set_state(state["generator"].cpu())  # torch wants it there, also for CUDA


def finite(values: Tensor) -> Tensor:
    """[N] bool: whether all numbers of a row are finite."""
    if not values.is_floating_point():
        return torch.ones(len(values), dtype=torch.bool, device=values.device)
    return values.isfinite().reshape(len(values), -1).all(1)


def pick(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return the rows of `chosen` where the [N] mask is True, else those of `other`."""
    return torch.where(mask.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)


class PointMass(TorchEnv):
    """A mass in a square is pushed to a goal: obs (position, velocity, goal), two each; action: the force.

    The reward exp(-2 distance) is in (0, 1]; `metrics["success"]` is a distance under 0.1. Never terminates. Random
    forces earn 0.18 per step, a sensible policy 0.94.
    """

    step_limit = 100
    obs_space = vector_space(6)
    critic_obs_space = obs_space
    action_space = Box(-1, 1, (2,), np.float32)
    signs: ClassVar[Mapping[str, Sequence[int]]] = {
        "obs": 3 * (-1, 1),
        "critic_obs": 3 * (-1, 1),
        "action": (-1, 1),
    }

    DT = 0.1
    FORCE = 3.0
    DRAG = 1.0

    def start(self) -> State:
        """At rest, anywhere; the goal likewise."""
        position, goal = 2 * self.uniform(2) - 1, 2 * self.uniform(2) - 1
        return {"position": position, "velocity": torch.zeros_like(position), "goal": goal}

    def advance(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor, Mapping[str, Tensor]]:
        """One step of semi-implicit Euler; a wall stops the mass."""
        velocity = state["velocity"] + self.DT * (self.FORCE * action - self.DRAG * state["velocity"])
        position = (state["position"] + self.DT * velocity).clamp(-1, 1)
        velocity = (position - state["position"]) / self.DT
        distance = (position - state["goal"]).norm(dim=1)
        new = {"position": position, "velocity": velocity, "goal": state["goal"]}
        return new, torch.exp(-2 * distance), torch.zeros_like(distance, dtype=torch.bool), {"success": distance < 0.1}

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """Everything there is."""
        obs = torch.cat([state["position"], state["velocity"], state["goal"]], 1)
        return obs, obs


class PointMassPrivileged(PointMass):
    """`PointMass` whose actor sees a noisy position and the goal; the critic sees the true state."""

    obs_space = vector_space(4)
    critic_obs_space = vector_space(6)
    signs: ClassVar[Mapping[str, Sequence[int]]] = {**PointMass.signs, "obs": 2 * (-1, 1)}

    NOISE = 0.05

    def start(self) -> State:
        """As in `PointMass`, with a first error of the sensor."""
        return {**super().start(), "error": self.NOISE * self.normal(2)}

    def advance(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor, Mapping[str, Tensor]]:
        """As in `PointMass`, with a new error of the sensor."""
        new, reward, terminated, metrics = super().advance(state, action)
        return {**new, "error": self.NOISE * self.normal(2)}, reward, terminated, metrics

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """(position + error, goal) and (position, velocity, goal)."""
        return torch.cat([state["position"] + state["error"], state["goal"]], 1), super().observe(state)[0]


class ClosedForm(TorchEnv):
    """A position x in [-1, 1] is drawn to 0 by moves that cost; the optimal values are known, see `optimal_value`.

    obs (x,), action a, reward 1 - x² - a², next x clip(x + a / 4, -1, 1). An episode begins anywhere. Each step it
    terminates with probability 0.05, whatever the action, and it is truncated after 25 steps. Most episodes terminate,
    a quarter are truncated: a value function that bootstraps wrongly at either end is far off.
    """

    step_limit = 25
    obs_space = vector_space(1)
    critic_obs_space = obs_space
    action_space: Box | Discrete = Box(-1, 1, (1,), np.float32)
    signs: ClassVar[Mapping[str, Sequence[int]]] = {"obs": (-1,), "critic_obs": (-1,), "action": (-1,)}

    STRIDE = 0.25
    HAZARD = 0.05

    def start(self) -> State:
        """Anywhere."""
        return {"x": 2 * self.uniform() - 1}

    def move(self, action: Tensor) -> Tensor:
        """[N] moves in [-1, 1]."""
        return action[:, 0]

    def advance(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor, Mapping[str, Tensor]]:
        """The reward is that of the state acted in."""
        x, move = state["x"], self.move(action)
        return {"x": self.shift(x, move)}, self.reward(x, move), self.uniform() < self.HAZARD, {}

    @classmethod
    def shift(cls, x: Tensor, move: Tensor) -> Tensor:
        """Return where a move leads."""
        return (x + cls.STRIDE * move).clamp(-1, 1)

    @staticmethod
    def reward(x: Tensor, move: Tensor) -> Tensor:
        """Return the reward of a move."""
        return 1 - x.square() - move.square()

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """The position."""
        obs = torch.stack([state["x"]], 1)
        return obs, obs


class ClosedFormDiscrete(ClosedForm):
    """The discrete twin of `ClosedForm`: x in {-1, -3/4, ..., 1}, actions 0, 1, 2 move by -1/4, 0, 1/4.

    Reward 1 - |x| - c, where a move costs c = 0.1 and staying nothing.
    """

    action_space = Discrete(3)
    signs: ClassVar[Mapping[str, Sequence[int]]] = {}  # its actions are swapped, not negated

    COST = 0.1

    def start(self) -> State:
        """On the grid, anywhere."""
        count = round(2 / self.STRIDE) + 1
        return {"x": (self.uniform() * count).floor() * self.STRIDE - 1}

    def move(self, action: Tensor) -> Tensor:
        """[N] moves: -1, 0 or 1."""
        return (action - 1).float()

    @staticmethod
    def reward(x: Tensor, move: Tensor) -> Tensor:
        """Return the reward of a move."""
        return 1 - x.abs() - ClosedFormDiscrete.COST * move.abs()


def optimal_value(obs: Tensor, gamma: float, discrete: bool = False) -> Tensor:
    """[*] optimal values of [*, 1] observations of `ClosedForm-v0`, or of its discrete twin.

    The time limit is no part of the task, so the values are those of endless episodes. Each step ends them with
    probability h = 0.05, and the value is then 0: so future rewards are discounted by g = gamma (1 - h).

    Continuous: with no bound on x and a, this is linear-quadratic with V(x) = c - p x². In Bellman's equation,
    c - p x² = max_a 1 - x² - a² + g (c - p (x + a/4)²), the maximum is at a = -k x with k = (g p / 4) / (1 + g p / 16),
    and comparing powers of x gives c = 1 / (1 - g) and b p² + (1 - g - b) p - 1 = 0 with b = g / 16. The bounds change
    nothing: k < 0.8 for g <= 0.95, so the best action is in [-1, 1] and leads inwards, and a move that is clipped leads
    to -1 or 1, where V is least: it is worse than to stay for nothing.

    Discrete: moving inwards saves g (V(|x| - 1/4) - V(|x|)) and costs 0.1. From one stride off the difference of the
    values is 0.1 + 1/4, from further it is more, so with g > 0.1 / 0.35 one moves at once. From n strides off, that is
    the sum over j < n of g^j (0.9 - (n - j) / 4), and then 1 at each step: g^n / (1 - g).

    Args:
        obs: positions x in [-1, 1].
        gamma: the agent's discount: in [0, 1], and at least 0.31 for the discrete task.
        discrete: whether the task is `ClosedFormDiscrete-v0`.
    """
    least = 0.31 if discrete else 0.0
    if not least <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}, must be in [{least}, 1]")
    discount = gamma * (1 - ClosedForm.HAZARD)
    x = obs[..., 0]
    if not discrete:
        return 1 / (1 - discount) - curvature(gamma) * x.square()
    strides = x.abs() / ClosedForm.STRIDE
    power = discount**strides
    per_move = (1 - power) / (1 - discount)  # the sum of g^j over j < n
    distance = ClosedForm.STRIDE * (strides - discount * per_move) / (1 - discount)  # of g^j (n - j) / 4
    return (1 - ClosedFormDiscrete.COST) * per_move - distance + power / (1 - discount)


def optimal_q(obs: Tensor, action: Tensor, gamma: float) -> Tensor:
    """[*] optimal values of an action in an observation of `ClosedForm-v0`; int64 actions mean its discrete twin.

    One step of the task, then `optimal_value`.

    Args:
        obs: [*, 1] positions.
        action: [*, 1] float32 or [*] int64.
        gamma: as in `optimal_value`.
    """
    discrete = not action.is_floating_point()
    task = ClosedFormDiscrete if discrete else ClosedForm
    move = (action - 1).to(obs.dtype) if discrete else action[..., 0]
    x = obs[..., 0]
    future = optimal_value(task.shift(x, move)[..., None], gamma, discrete)
    return task.reward(x, move) + gamma * (1 - task.HAZARD) * future


def optimal_action(obs: Tensor, gamma: float, discrete: bool = False) -> Tensor:
    """[*, 1] float32 or [*] int64 actions that attain `optimal_value`."""
    if discrete:
        return 1 - obs[..., 0].sign().long()
    pull = gamma * (1 - ClosedForm.HAZARD) * curvature(gamma) * ClosedForm.STRIDE
    return -pull / (1 + pull * ClosedForm.STRIDE) * obs


def curvature(gamma: float) -> float:
    """Return p of `optimal_value`: the positive root, in the form that also holds for gamma = 0."""
    discount = gamma * (1 - ClosedForm.HAZARD)
    b = discount * ClosedForm.STRIDE**2
    return 2 / (1 - discount - b + math.sqrt((1 - discount - b) ** 2 + 4 * b))


class Scripted(TorchEnv):
    """Episodes that end by a script, and tell each transition from all others.

    obs (environment, episode, step of the episode, last action, ticket), where the ticket is a random number of the
    episode. The reward of a step is 10000 environment + 100 episode + step, where the first step is 1.

    Args:
        num_envs: N.
        seed: of the run.
        device: where the tensors live.
        max_episode_steps: the time limit.
        script: for environment i the row i (modulo the rows), for episode k its entry k (modulo the entries): the step
            at which the episode terminates, 0 if it runs to the time limit. By default: terminates after 3 steps; is
            truncated; terminates on the very step of the limit, and is not truncated; 2 steps and truncation in turns.
        nan_at: (environment, episode, step) whose reward and observation are NaN.
    """

    step_limit = 10
    obs_space = vector_space(5)
    critic_obs_space = obs_space
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(
        self,
        num_envs: int,
        seed: int,
        device: torch.device,
        max_episode_steps: int | None = None,
        script: Sequence[Sequence[int]] | None = None,
        nan_at: Sequence[int] | None = None,
    ) -> None:
        super().__init__(num_envs, seed, device, max_episode_steps)
        rows = [(3,), (0,), (self.max_episode_steps,), (2, 0)] if script is None else script
        if not is_script(rows):
            raise TaskError(f"script is {script!r}, must be rows of steps of at least 0, like ((3,), (2, 0))")
        period = math.lcm(*(len(row) for row in rows))
        table = torch.tensor([[row[k % len(row)] for k in range(period)] for row in rows], device=device)
        if nan_at is not None and not (isinstance(nan_at, tuple | list) and [type(k) for k in nan_at] == [int] * 3):
            raise TaskError(f"nan_at is {nan_at!r}, must be three integers (environment, episode, step)")
        self._env = torch.arange(num_envs, device=device)
        self._script = table[self._env % len(table)]  # [N, period]
        self._nan_at = (-1, -1, -1) if nan_at is None else tuple(nan_at)

    def start(self) -> State:
        """A new ticket, and no action yet."""
        ticket = self.uniform()
        return {"ticket": ticket, "action": torch.zeros_like(ticket)}

    def advance(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor, Mapping[str, Tensor]]:
        """Count, and look into the script."""
        episode, step = state["episode"], state["elapsed"] + 1
        terminated = step == self._script[self._env, episode % self._script.shape[1]]
        env_at, episode_at, step_at = self._nan_at
        broken = (self._env == env_at) & (episode == episode_at) & (step == step_at)
        reward = (10_000 * self._env + 100 * episode + step).float()
        new = {"ticket": state["ticket"], "action": torch.where(broken, torch.nan, action[:, 0])}
        return new, torch.where(broken, torch.nan, reward), terminated, {}

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """All counters as float32, exact up to 2^24."""
        counts = (self._env, state["episode"], state["elapsed"])
        obs = torch.stack([*(count.float() for count in counts), state["action"], state["ticket"]], 1)
        return obs, obs


def is_script(rows: Any) -> bool:
    """Whether these are rows of steps, none of them empty."""
    if not isinstance(rows, list | tuple) or not rows:
        return False
    if not all(isinstance(row, list | tuple) and row for row in rows):
        return False
    return all(isinstance(step, int) and step >= 0 for row in rows for step in row)


class Pixels(TorchEnv):
    """Four stacked frames of 84 x 84 with a bright bar in one of four columns; its number is the action that pays 1.

    The newest frame is the last channel; what pays is in that one. Random actions earn 0.25 per step, the best 1. Never
    terminates.
    """

    step_limit = 50
    obs_space = Box(0, 255, (4, 84, 84), np.uint8)
    critic_obs_space = obs_space
    action_space = Discrete(4)

    def column(self) -> Tensor:
        """[N, 1] int64 in 0..3."""
        return (4 * self.uniform(1)).long()

    def start(self) -> State:
        """Four times the first frame."""
        return {"column": self.column().repeat(1, 4)}

    def advance(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor, Mapping[str, Tensor]]:
        """Pay, and move the bar."""
        column = state["column"]
        reward = (action == column[:, -1]).float()
        new = {"column": torch.cat([column[:, 1:], self.column()], 1)}
        return new, reward, torch.zeros_like(reward, dtype=torch.bool), {}

    def observe(self, state: State) -> tuple[Tensor, Tensor]:
        """Render [N, 4, 84, 84]."""
        bar = torch.arange(84, device=self.device) // 21 == state["column"][..., None]  # [N, 4, 84]
        obs = (255 * bar.to(torch.uint8))[:, :, None].repeat(1, 1, 84, 1)
        return obs, obs


TASKS: dict[str, type[TorchEnv]] = {
    "PointMass-v0": PointMass,
    "PointMassPrivileged-v0": PointMassPrivileged,
    "ClosedForm-v0": ClosedForm,
    "ClosedFormDiscrete-v0": ClosedFormDiscrete,
    "Scripted-v0": Scripted,
    "Pixels-v0": Pixels,
}
