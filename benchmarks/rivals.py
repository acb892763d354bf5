"""Frames per second of PPO and SAC in training, beside CleanRL's and LeanRL's PPO and Stable-Baselines3's PPO and SAC.

    python benchmarks/speed.py ppo --cleanrl CHECKOUT --leanrl CHECKOUT --sb3-python PYTHON --out results.json

The first CHECKOUT is a copy of github.com/vwxyzjn/cleanrl, the second of github.com/pytorch-labs/LeanRL, and PYTHON an
interpreter that has stable-baselines3. All stay outside of this repository, and the table says what is missing. Every
program trains in a process of its own and stops after each turn; they take turns, there and back again, so that
whatever else the machine does hits them alike. A row has the median of some turns with the least and the largest behind
it, after a first turn that does not count.

What is equal in a task: the simulator (EnvPool of one version, with as many threads as torch), environments, rollout,
minibatches, epochs, networks; for SAC batch, critics, and updates of actor and critics per frame. Evaluation, logging
and checkpoints are off. What the programs are:

1. Ours is run as users do, `python agents/ppo.py`, and where it then takes bfloat16 also with `--amp off`.
2. CleanRL's scripts are run as they are, by their own flags. `SummaryWriter` is replaced, since it logs. The Atari one
   was written for EnvPool's interface of 2022, which is put around the one of today. The continuous one runs twice: on
   Gymnasium's SyncVectorEnv as published, and with EnvPool in its place, normalised for all environments at once.
3. LeanRL's scripts, CleanRL's with torch.compile, run likewise, on EnvPool: as they are by default, which compiles
   nothing, and compiled, on a GPU with CUDA graphs. `wandb` and `tqdm` are replaced, and the copy of the policy that
   acts has no gradients, as with the tensordict that they were written for.
4. Stable-Baselines3 gets the same EnvPool, behind fewer layers than its own wrappers have.

The simulator takes the same time in all programs. It has a row of its own, which no learner can exceed on one core, and
the column `learner` is the processor time of a frame without the simulator's.

This file imports neither torch nor anything of ours: it is also what runs in the other interpreters.
"""

import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any, Literal, NamedTuple, Self

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FOREVER = 2_000_000_000  # frames: programs are stopped from outside
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""environment variables that say how many a library may use"""
VERSIONS = ("torch", "numpy", "gymnasium", "envpool", "stable-baselines3")


@dataclass(frozen=True)
class Task:
    """What all programs do."""

    algorithm: Literal["PPO", "SAC"]
    env_id: str
    num_envs: int
    hidden: tuple[int, ...]
    sem: tuple[int, int, int, int]
    """L and V of the actor, L and V of the critics"""
    num_steps: int = 0
    num_minibatches: int = 0
    update_epochs: int = 0
    batch_size: int = 0
    num_updates: int = 0
    """of SAC, per step of all environments"""
    images: bool = False

    def __str__(self) -> str:
        shown = {name.replace("_", " "): value for name, value in asdict(self).items() if value}
        shown = {name: value for name, value in shown.items() if name not in ("algorithm", "env id", "sem", "images")}
        return f"{self.algorithm}, {self.env_id}: " + ", ".join(f"{name} {value}" for name, value in shown.items())


TASKS = {
    "atari": Task("PPO", "Pong-v5", 8, (512,), (64, 8, 64, 8), 128, 4, 4, images=True),
    "cheetah": Task("PPO", "HalfCheetah-v5", 16, (64, 64), (2, 32, 2, 32), 128, 32, 10),
    "sac": Task("SAC", "HalfCheetah-v5", 16, (256, 256), (4, 64, 4, 64), batch_size=256, num_updates=4),
}


@dataclass
class Args:
    """Time the training of PPO and SAC, beside CleanRL and Stable-Baselines3 where they are installed."""

    cleanrl: Path | None = None
    """checkout of github.com/vwxyzjn/cleanrl to compare with"""
    leanrl: Path | None = None
    """checkout of github.com/pytorch-labs/LeanRL to compare with"""
    sb3_python: Path | None = None
    """interpreter that has stable-baselines3, envpool and torch; by default the one that runs this"""
    tasks: tuple[Literal["atari", "cheetah", "sac"], ...] = ("atari", "cheetah", "sac")
    """what to train"""
    turn: int = 2048
    """frames that each program trains for in its turn, rounded up to whole rollouts"""
    repeats: int = 5
    """turns of each program that count"""
    threads: int = 0
    """threads of torch, and as many of the simulator; 0 for all cores that the process may use"""
    clock: Literal["wall", "cpu"] = "wall"
    """what frames are divided by: wall-clock time, or processor time of all threads. Both are written"""
    compile: bool = False
    """ours with torch.compile too, in rows of its own; takes a minute or two before the first number"""
    out: Path | None = None
    """JSON file for settings, machine and every number"""
    device: str = "cpu"
    """where all learners live: cpu, cuda"""


class Missing(Exception):
    """A program cannot run here; one line that says what it needs."""


def need(module: str, package: str = "") -> Any:
    """Return a module that this file does not need by itself.

    Raises:
        Missing: it is not installed; with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise Missing(f"not installed ({error}): {sys.executable} -m pip install {package or module}") from error


# ---- the programs, each in its own process ---------------------------------------------------------------------------


class Gate:
    """Where a program that trains waits for its turn. Called once in each of its iterations, with the frames so far."""

    def __init__(self, orders: IO[str], reports: IO[str]) -> None:
        self._orders, self._reports = orders, reports
        self._frames = 0
        self._goal = 1
        self._begin = time.perf_counter(), time.process_time()

    def __call__(self, frames: int, precision: str = "off") -> None:
        """Return at once within a turn. At its end report it, and wait for the next. `precision` is that of ours."""
        if frames < self._goal:
            return
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        wall_s, cpu_s = time.perf_counter() - self._begin[0], time.process_time() - self._begin[1]
        print(json.dumps([frames - self._frames, wall_s, cpu_s, precision]), file=self._reports, flush=True)
        order = self._orders.readline()
        if not order:  # it was the last turn; the program itself would train for years
            os._exit(0)
        self._frames, self._goal = frames, frames + int(order)
        self._begin = time.perf_counter(), time.process_time()


class Order(NamedTuple):
    """What a process is to do."""

    program: str
    """a key of PROGRAMS"""
    task: Task
    threads: int
    device: str
    flags: tuple[str, ...] = ()
    """of ours and of LeanRL"""
    checkout: str = ""
    """of CleanRL or LeanRL"""
    on_envpool: bool = True
    """whether CleanRL's continuous script has EnvPool in the place of its environments"""


def run_script(path: Path, flags: Sequence[object]) -> None:
    """Do what `python path flags` does."""
    sys.argv = [str(path), *map(str, flags)]
    runpy.run_path(str(path), run_name="__main__")


def run_ours(order: Order, gate: Gate) -> None:
    """Train with an agent of this repository, by its own command line."""
    need("agents.run").Run.progress = lambda run, frames: gate(frames, run.args.amp)
    agent = {"PPO": "ppo", "SAC": "fastsac"}[order.task.algorithm]
    run_script(ROOT / "agents" / f"{agent}.py", [*our_flags(order), *order.flags])


def our_flags(order: Order) -> list[object]:
    """Return all flags that the speed depends on, so that it does not depend on presets, and those that keep quiet."""
    task, ppo = order.task, order.task.algorithm == "PPO"
    names = ("env_id", "num_envs", *(("num_steps", "num_minibatches", "update_epochs") if ppo else ("batch_size",)))
    flags: dict[str, Any] = {name: getattr(task, name) for name in names}
    flags |= {"device": order.device, "threads": order.threads, "env_threads": order.threads, "size": "small"}
    flags |= {"total_timesteps": FOREVER, "log_every": 0, "eval_every": 0, "save_every": 0, "quiet": True}
    flags |= {"actor_hidden": task.hidden, "critic_hidden": task.hidden}
    names = ("sem_actor_groups", "sem_actor_vertices", "sem_critic_groups", "sem_critic_vertices")
    flags |= dict(zip(names, task.sem, strict=True))
    if ppo:
        flags |= {"activation": "tanh", "lr_schedule": "linear", "target_kl": 0, "max_grad_norm": 0.5}
        flags |= {"clip_vloss": True, "norm_adv": True, "share_hidden": True}
        flags |= {"obs_norm": not task.images, "reward_norm": not task.images}
    else:
        flags |= {"num_updates": task.num_updates, "policy_frequency": 1, "n_step": 1, "buffer_size": 1_000_000}
        flags |= {"learning_starts": 10 * task.num_envs, "activation": "relu", "max_grad_norm": 0, "weight_decay": 0}
        flags |= {"distributional": False, "clipped_double_q": True, "autotune": True, "layer_norm": False}
        flags |= {"obs_norm": False, "reward_norm": False}
    words: list[object] = []
    for name, value in flags.items():
        switch = isinstance(value, bool)
        words.append(f"--no-{name}" if value is False else f"--{name}")
        words += [] if switch else value if isinstance(value, tuple) else [value]
    return words


def run_cleanrl(order: Order, gate: Gate) -> None:
    """Train with one of CleanRL's scripts, by its own command line."""
    task = order.task
    path = Path(order.checkout) / "cleanrl" / f"ppo_{'atari_envpool' if task.images else 'continuous_action'}.py"
    if not path.is_file():
        raise Missing(f"{order.checkout} is no checkout of github.com/vwxyzjn/cleanrl: there is no cleanrl/{path.name}")
    need("tyro")
    sys.modules["torch.utils.tensorboard"] = module("tensorboard", SummaryWriter=lambda *_: Writer(gate))
    gymnasium = need("gymnasium", "'gymnasium[mujoco]'")
    if task.images or order.on_envpool:
        put_envpool(order)
    else:  # Gymnasium 1.0 has made an argument mandatory
        transform = gymnasium.wrappers.TransformObservation
        gymnasium.wrappers.TransformObservation = lambda env, func: transform(env, func, env.observation_space)
    run_script(path, cleanrl_flags(order))


def put_envpool(order: Order) -> None:
    """Put EnvPool in the place of the environments of CleanRL's scripts, and of those like them."""
    gymnasium = need("gymnasium", "'gymnasium[mujoco]'")
    if not order.task.images:
        gymnasium.vector.SyncVectorEnv = lambda thunks: Pool(order.task, order.threads, normalise=True)
        return
    envpool = need("envpool")
    make = envpool.make_gymnasium
    envpool.make = lambda task_id, env_type, **options: old_interface(
        make(task_id, **options, num_threads=order.threads)
    )
    sys.modules["gym"] = module("gym", Wrapper=Wrapper, spaces=gymnasium.spaces)


def cleanrl_flags(order: Order) -> list[object]:
    """Return the command line of CleanRL's scripts, and of those like them."""
    names = ("env_id", "num_envs", "num_steps", "num_minibatches", "update_epochs")
    flags = {**{name: getattr(order.task, name) for name in names}, "total_timesteps": FOREVER}
    cuda = "--cuda" if order.device.startswith("cuda") else "--no-cuda"
    return [cuda, *(word for name, value in flags.items() for word in (f"--{name}", value))]


def run_leanrl(order: Order, gate: Gate) -> None:
    """Train with one of LeanRL's scripts, by its own command line."""
    task = order.task
    script = f"ppo_{'atari_envpool' if task.images else 'continuous_action'}_torchcompile.py"
    path = Path(order.checkout) / "leanrl" / script
    if not path.is_file():
        raise Missing(f"{order.checkout} is no checkout of github.com/pytorch-labs/LeanRL: there is no leanrl/{script}")
    for package in ("tyro", "tensordict"):
        need(package)

    class Bar:
        """In the place of tqdm's: the loop over iterations."""

        def __init__(self, iterations: range) -> None:
            self._iterations = iterations

        def __iter__(self) -> Iterator[int]:
            for done, iteration in enumerate(self._iterations):
                if done:
                    gate(done * task.num_envs * task.num_steps)
                yield iteration

        def set_description(self, _: str) -> None:
            """Do nothing."""

    kind = need("tensordict").TensorDict
    share = kind.to_module

    def detached(weights: Any, network: Any, *rest: Any, **options: Any) -> Any:
        """As in the tensordict of its day: the copy of the policy that acts has the weights, and no gradients."""
        shared = share(weights, network, *rest, **options)
        network.requires_grad_(False)
        return shared

    kind.to_module = detached
    sys.modules["tqdm"] = module("tqdm", tqdm=Bar)
    sys.modules["wandb"] = module("wandb", init=lambda **_: None, log=lambda *_, **__: None)
    put_envpool(order)
    run_script(path, [*cleanrl_flags(order), *order.flags])


def run_sb3(order: Order, gate: Gate) -> None:
    """Train with Stable-Baselines3."""
    task = order.task
    sb3 = need("stable_baselines3", "stable-baselines3")
    base = need("stable_baselines3.common.vec_env").VecEnv
    callback = need("stable_baselines3.common.callbacks").BaseCallback
    nn = need("torch").nn
    env = type("Env", (Restarting, base), {})(task, order.threads, task.algorithm == "PPO" and not task.images)
    base.__init__(env, task.num_envs, env.single_observation_space, env.single_action_space)

    class Tick(callback):  # type: ignore[misc, valid-type]
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:  # what went before, updates included, is done
            gate(self.model.num_timesteps)

    sizes: dict[str, Any] = {"batch_size": task.batch_size, "device": order.device}
    if task.algorithm == "SAC":
        sizes |= {"train_freq": 1, "gradient_steps": task.num_updates, "learning_starts": 10 * task.num_envs}
        model = sb3.SAC("MlpPolicy", env, policy_kwargs={"net_arch": list(task.hidden)}, **sizes)
    else:
        sizes |= {"n_steps": task.num_steps, "n_epochs": task.update_epochs, "clip_range_vf": 0.2}
        sizes["batch_size"] = task.num_envs * task.num_steps // task.num_minibatches
        net: dict[str, Any] = {"features_extractor_kwargs": {"features_dim": task.hidden[-1]}}
        if not task.images:
            net = {"net_arch": list(task.hidden), "activation_fn": nn.Tanh}
        model = sb3.PPO("CnnPolicy" if task.images else "MlpPolicy", env, policy_kwargs=net, **sizes)
    model.learn(FOREVER, callback=Tick(), log_interval=None)


def run_simulator(order: Order, gate: Gate) -> None:
    """Step the environments with the same actions again and again."""
    task = order.task
    pool = Pool(task, order.threads, normalise=False)
    pool.reset()
    actions = np.stack([pool.single_action_space.sample() for _ in range(task.num_envs)])
    frames = 0
    while True:
        pool.step(actions)
        frames += task.num_envs
        gate(frames)


PROGRAMS: dict[str, Callable[[Order, Gate], None]] = {
    "ours": run_ours,
    "CleanRL": run_cleanrl,
    "LeanRL": run_leanrl,
    "SB3": run_sb3,
    "simulator": run_simulator,
}


def serve(text: str) -> None:
    """Be one of the programs, as the order says, and speak with the benchmark over stdin and stdout."""
    fields = json.loads(text)
    task: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields["task"].items()}
    order = Order(**{**fields, "task": Task(**task)})
    reports = mute()
    try:
        if order.program != "simulator":
            need("torch").set_num_threads(order.threads)
        print(json.dumps(versions()), file=reports, flush=True)
        PROGRAMS[order.program](order, Gate(sys.stdin, reports))
    except Missing as missing:
        sys.exit(str(missing))


def mute() -> IO[str]:
    """Return standard output; from now on what the program itself prints does not get there."""
    reports = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    return reports


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that matter, None of what is not installed."""
    found: dict[str, str | None] = dict.fromkeys(VERSIONS)
    for package in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


# ---- what stands between EnvPool and the rivals ----------------------------------------------------------------------


def module(name: str, **contents: Any) -> ModuleType:
    """Return a module that holds just this."""
    made = ModuleType(name)
    vars(made).update(contents)
    return made


class Writer:
    """In the place of TensorBoard's: of all that a script of CleanRL logs, the one thing that ends an iteration."""

    def __init__(self, gate: Callable[[int], None]) -> None:
        self._gate = gate

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Let the gate see the end of an iteration."""
        if tag == "charts/SPS":
            self._gate(step)

    def add_text(self, *_: object) -> None:
        """Do nothing."""


class Wrapper:
    """What a script of 2022 expects of `gym.Wrapper`."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **options: Any) -> Any:
        """Pass it on."""
        return self.env.reset(**options)

    def step(self, action: np.ndarray) -> Any:
        """Pass it on."""
        return self.env.step(action)


def old_interface(pool: Any) -> SimpleNamespace:
    """Return EnvPool with the interface of 2022: `reset` without info, four values from `step`, attributes to set."""

    def step(action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        obs, reward, terminated, truncated, info = pool.step(action)
        return obs, reward, terminated | truncated, info

    return SimpleNamespace(
        observation_space=pool.observation_space,
        action_space=pool.action_space,
        reset=lambda: pool.reset()[0],
        step=step,
        close=pool.close,
    )


class Moments:
    """Running mean and variance of rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), 1e-4

    def update(self, rows: np.ndarray) -> None:
        """Learn from [B, *shape]."""
        n, delta = len(rows), rows.mean(0) - self.mean
        total = self.count + n
        squares = self.var * self.count + rows.var(0) * n + delta**2 * (self.count * n / total)
        self.mean, self.var, self.count = self.mean + delta * (n / total), squares / total, total


class Pool:
    """EnvPool as Gymnasium's vector environments are, which restart in the step after the end of an episode.

    Float32 throughout. If asked, actions are clipped, and observations and rewards are normalised by running moments
    and clipped, as CleanRL's and our PPO want them.
    """

    gamma = 0.99

    def __init__(self, task: Task, threads: int, normalise: bool, seed: int = 1) -> None:
        options: dict[str, Any] = {"episodic_life": True, "reward_clip": True} if task.images else {}
        options |= {"num_envs": task.num_envs, "num_threads": threads, "seed": seed}
        self._pool = need("envpool").make_gymnasium(task.env_id, **options)
        obs, action = self._pool.observation_space, self._pool.action_space
        spaces = need("gymnasium").spaces
        box = spaces.Box
        self._parts = tuple(obs) if isinstance(obs, spaces.Dict) else ()
        if self._parts:
            obs = spaces.flatten_space(obs)
        self._dtype = np.uint8 if task.images else np.float32
        self.single_observation_space = (
            box(0, 255, obs.shape, np.uint8) if task.images else box(-np.inf, np.inf, obs.shape, np.float32)
        )
        discrete = not hasattr(action, "low")
        self.single_action_space = action if discrete else box(action.low.min(), action.high.max(), action.shape)
        self._obs = Moments(obs.shape) if normalise else None
        self._returns = Moments(())
        self._running = np.zeros(task.num_envs)

    def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first observations."""
        return self._observe(self._pool.reset()[0]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Return what all environments answer."""
        if self._obs is not None:
            action = np.clip(action, self.single_action_space.low, self.single_action_space.high)
        obs, reward, terminated, truncated, _ = self._pool.step(action)
        if self._obs is not None:
            self._running = self._running * self.gamma + reward
            self._returns.update(self._running)
            self._running[terminated | truncated] = 0
            reward = np.clip(reward / np.sqrt(self._returns.var + 1e-8), -10, 10).astype(np.float32)
        return self._observe(obs), reward, terminated, truncated, {}

    def close(self) -> None:
        """Stop the threads."""
        self._pool.close()

    def _observe(self, obs: Any, learn: bool = True) -> np.ndarray:
        if self._parts:
            obs = np.concatenate([obs[part].reshape(len(obs[part]), -1) for part in self._parts], 1)
        if self._obs is not None:
            if learn:
                self._obs.update(obs)
            obs = np.clip((obs - self._obs.mean) / np.sqrt(self._obs.var + 1e-8), -10, 10)
        return obs.astype(self._dtype, copy=False)


class Restarting(Pool):
    """The same as Stable-Baselines3's vector environments are, which restart in the step that ends an episode."""

    def __init__(self, task: Task, threads: int, normalise: bool, seed: int = 1) -> None:
        super().__init__(task, threads, normalise, seed)
        self._nothing = np.zeros((task.num_envs, *self.single_action_space.shape), self.single_action_space.dtype)

    def reset(self) -> np.ndarray:  # type: ignore[override]
        """Return the first observations."""
        return super().reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return what all environments answer; an info dict holds the last observation of an episode."""
        obs, reward, terminated, truncated, _ = Pool.step(self, self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in done]
        ended = np.flatnonzero(done)
        if len(ended):
            for index in ended:
                over = bool(truncated[index] and not terminated[index])
                infos[index] = {"terminal_observation": obs[index].copy(), "TimeLimit.truncated": over}
            first = self._pool.step(self._nothing[ended], ended.astype(np.int32))[0]
            obs = obs.copy()
            obs[ended] = self._observe(first, learn=False)
        return obs, reward, done, infos

    def step(self, actions: np.ndarray) -> Any:
        """Do both halves."""
        self.step_async(actions)
        return self.step_wait()

    def get_attr(self, *_: Any, **__: Any) -> list[None]:
        """Say that no environment has the attribute, which is asked for its way of rendering."""
        return [None] * len(self._nothing)

    def _unused(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("the learners here call no methods of environments")

    set_attr = env_method = _unused

    def env_is_wrapped(self, *_: Any, **__: Any) -> list[bool]:
        """Say that no environment is wrapped in anything."""
        return [False] * len(self._nothing)


# ---- the benchmark ---------------------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """What one program did in its turn."""

    frames: int
    wall_s: float
    cpu_s: float
    precision: str = "off"
    """what the products of ours are rounded to: bfloat16, or off"""


class Program:
    """A program in its own process, which trains when it is told to."""

    def __init__(self, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self._errors = open(folder / "stderr.txt", "w+")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=folder,
            env={**os.environ, **env},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._reports = self._process.stdin, self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it holds nothing that has to be saved
        self._process.wait()
        for file in (self._orders, self._reports, self._errors):
            with suppress(BrokenPipeError):  # of an order that it no longer took
                file.close()

    def start(self) -> tuple[dict[str, str | None], Turn]:
        """Wait until the program has done its first iteration; returns the versions of its packages, and that.

        Raises:
            Missing: it has ended instead.
        """
        return self.read(), Turn(*self.read())

    def turn(self, frames: int) -> Turn:
        """Let the program train.

        Raises:
            Missing: it has ended instead.
        """
        with suppress(BrokenPipeError):  # what it said last is the better message
            print(frames, file=self._orders, flush=True)
        return Turn(*self.read())

    @property
    def finished(self) -> bool:
        """Whether it has come to its end by itself, and without an error."""
        return self._process.returncode == 0

    def read(self) -> Any:
        """Return what the program says next.

        Raises:
            Missing: it has ended instead; with its last words.
        """
        line = self._reports.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().split("\n")
        raise Missing(next((line.strip() for line in reversed(said) if line.strip()), "ended without a word"))


class Row(NamedTuple):
    """A program of a task, by the name that the table gives it."""

    name: str
    side: Literal["ours", "rival", "simulator"]
    python: str
    order: Order
    sem_off: str | None = None
    """name of the row that is the same without SEM"""


def lineup(args: Args, task: Task) -> tuple[list[Row], dict[str, str]]:
    """Return the programs of a task, and what is left out and why."""
    common: dict[str, Any] = {"task": task, "threads": args.threads, "device": args.device}
    here, rows, missing = sys.executable, [], {}
    for more in ("", " --amp off", *([" --compile"] if args.compile else [])):
        plain = f"ours{more}"
        for name, off in ((plain, None), (f"{plain} --sem", plain)):
            rows.append(Row(name, "ours", here, Order("ours", **common, flags=tuple(name.split()[1:])), off))
    if task.algorithm == "PPO" and args.cleanrl is None:
        missing["CleanRL"] = "not installed: git clone https://github.com/vwxyzjn/cleanrl, and --cleanrl cleanrl"
    elif task.algorithm == "PPO" and args.cleanrl is not None:
        order = Order("CleanRL", **common, checkout=str(args.cleanrl.resolve()))
        rows.append(Row("CleanRL, EnvPool", "rival", here, order))
        if not task.images:
            rows.append(Row("CleanRL, as published", "rival", here, order._replace(on_envpool=False)))
    if task.algorithm == "PPO" and args.leanrl is None:
        missing["LeanRL"] = "not installed: git clone https://github.com/pytorch-labs/LeanRL, and --leanrl LeanRL"
    elif task.algorithm == "PPO" and args.leanrl is not None:
        order = Order("LeanRL", **common, checkout=str(args.leanrl.resolve()))
        quick = ("--compile", "--cudagraphs") if args.device.startswith("cuda") else ("--compile",)
        rows.append(Row("LeanRL, EnvPool", "rival", here, order))
        rows.append(Row(f"LeanRL {' '.join(quick)}", "rival", here, order._replace(flags=quick)))
    rows.append(Row(f"SB3 {task.algorithm}, EnvPool", "rival", str(args.sb3_python or here), Order("SB3", **common)))
    rows.append(Row("simulator alone", "simulator", here, Order("simulator", **common)))
    return rows, missing


def command(row: Row) -> list[str]:
    """Return what starts the program in a process of its own."""
    return [row.python, __file__, json.dumps({**row.order._asdict(), "task": asdict(row.order.task)})]


def take_turns(programs: Mapping[str, Any], repeats: int, frames: int) -> dict[str, list[Turn]]:
    """Return the turns of each program, after one that does not count. They go there and back again.

    Raises:
        Missing: a program has ended; says which.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        names = list(programs)
        for name in names if repeat % 2 == 0 else names[::-1]:
            try:
                turns[name].append(programs[name].turn(frames))
            except Missing as why:
                raise Missing(f"{name} ended in its turn: {why}") from None
    return {name: seen[1:] for name, seen in turns.items()}


def ratio(of: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Return the ratio of medians, and the least and largest ratio within a repeat."""
    within = [a / b for a, b in zip(of, to, strict=True)]
    return {"ratio": statistics.median(of) / statistics.median(to), "min": min(within), "max": max(within)}


def results(rows: Sequence[Row], turns: Mapping[str, Sequence[Turn]], clock: str) -> list[dict[str, Any]]:
    """Return what the table shows of each program, and the numbers that it follows from.

    `speedup` of ours is how many times as fast as the fastest rival it is; `to_sem_off` is time with SEM over time
    without. `learner_us` is the processor time of a frame without the simulator's.
    """
    seconds = {
        name: [(t.cpu_s if clock == "cpu" else t.wall_s) / t.frames for t in seen] for name, seen in turns.items()
    }
    cpu_us = {name: statistics.median(1e6 * t.cpu_s / t.frames for t in seen) for name, seen in turns.items()}
    rivals = [row.name for row in rows if row.side == "rival"]
    fastest = min(rivals, key=lambda name: statistics.median(seconds[name]), default=None)
    alone = next((cpu_us[row.name] for row in rows if row.side == "simulator"), None)
    out = []
    for row in rows:
        rates = [1 / s for s in seconds[row.name]]
        learner = None if alone is None or row.side == "simulator" else cpu_us[row.name] - alone
        out.append(
            {
                "task": str(row.order.task),
                "program": row.name,
                "side": row.side,
                "frames_per_s": statistics.median(rates),
                "min": min(rates),
                "max": max(rates),
                "cpu_us": cpu_us[row.name],
                "learner_us": learner,
                "fastest_rival": fastest if row.side == "ours" else None,
                "speedup": ratio(seconds[fastest], seconds[row.name]) if fastest and row.side == "ours" else None,
                "to_sem_off": ratio(seconds[row.name], seconds[row.sem_off]) if row.sem_off else None,
                "precision": "bfloat16" if turns[row.name][0].precision == "bfloat16" else "float32",
                "turns": [t._asdict() for t in turns[row.name]],
            }
        )
    return out


def table(title: str, rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> str:
    """Return the rows of one task as text."""

    def cell(of: Mapping[str, float] | None) -> str:
        return f"{of['ratio']:7.3f} [{of['min']:.3f}, {of['max']:.3f}]" if of else ""

    lines = [title, f"  {'':<24}{'frames/s':>9}  {'[least, largest]':<18}{'CPU us':>7}{'learner':>9}"]
    lines[1] += f"{'x fastest rival':>24}{'time to SEM off':>25}"
    for row in rows:
        spread = f"[{row['min']:,.0f}, {row['max']:,.0f}]"
        learner = "" if row["learner_us"] is None else f"{row['learner_us']:.0f}"
        line = f"  {row['program']:<24}{row['frames_per_s']:>9,.0f}  {spread:<18}{row['cpu_us']:>7.0f}{learner:>9}"
        lines.append(f"{line}{cell(row['speedup']):>24}{cell(row['to_sem_off']):>25}".rstrip())
    return "\n".join([*lines, *(f"  {name:<24}{why}" for name, why in missing.items())])


def run(args: Args, report: dict[str, Any]) -> None:
    """Run the tasks, print their tables, add to the report what they have shown, and write it.

    Raises:
        Missing: ours does not run.
    """
    print(f"clock      {args.clock}; median [least, largest] of {args.repeats} turns of {args.turn:,} frames\n")
    report |= {"results": [], "versions": {}, "missing": {}}
    for name in args.tasks:
        found = compare(args, TASKS[name])
        report["results"] += found["results"]
        for part in ("versions", "missing"):
            report[part][name] = found[part]
        if args.out is not None:  # after each task: what is there is not lost with the next
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    if args.out is not None:
        print(f"\nevery number: {args.out}")


def compare(args: Args, task: Task) -> dict[str, Any]:
    """Return what the programs of a task have shown: `results`, `versions` and `missing`. Prints the table.

    Raises:
        Missing: ours does not run.
    """
    rows, missing = lineup(args, task)
    env = dict.fromkeys(THREADS, str(args.threads))
    running: dict[str, Program] = {}
    installed: dict[str, dict[str, str | None]] = {}
    precision: dict[str, str] = {}
    with ExitStack() as stack:
        for number, row in enumerate(rows):
            if "--amp off" in row.name and precision["ours"] == "off":
                continue  # it would be the same again
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / str(number)
            folder.mkdir()
            program = stack.enter_context(Program(command(row), folder, env))
            try:
                installed[row.name], first = program.start()
                running[row.name], precision[row.name] = program, first.precision
            except Missing as why:
                if row.side != "rival":
                    raise Missing(f"{row.name} does not run: {why}") from None
                missing[row.name] = str(why)
        turns = take_turns(running, args.repeats, args.turn)
    found = results([row for row in rows if row.name in running], turns, args.clock)
    print(table(str(task), found, missing), flush=True)
    return {"results": found, "versions": installed, "missing": missing}


if __name__ == "__main__":
    serve(sys.argv[1])
