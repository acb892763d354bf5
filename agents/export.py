"""A trained policy as a folder that runs without this library: ONNX, a torch.export program, and what to know of both.

    python agents/export.py runs/RUN_DIR                      # the newest good checkpoint, into RUN_DIR/export
    python agents/export.py runs/RUN_DIR --out robot/policy   # elsewhere; --force replaces a bundle that is there
    python runs/RUN_DIR/export/run_policy.py observation.npy  # needs onnxruntime and numpy, and nothing else

The graph goes from the raw observation of the task to the action in the task's own units: normaliser, SEM, clipping and
scaling are in it, and the policy is the deterministic one that runs are evaluated with. The first dimension is the
batch, of any size.

    policy.onnx     input `obs`; output `action`, float32 [B, A] within the task's range; of discrete actions int64 [B],
                    the best one, and a second output, float32 [B, n]: `logits`, the logarithms of probabilities, or
                    the `values` that PQN gives to actions
    policy.pt2      the same for `torch.export.load`, on a CPU
    policy.json     observation, action, control time step, SEM, where it comes from, versions, checksums
    run_policy.py   a program, and a module: `Policy(folder)(obs)`; it checks the other three, and is yours to change

Before anything is written, the policy acts in its task, and all three (agent, program, graph by onnxruntime) must agree
in what was seen there; else it is refused.
"""

import contextlib
import copy
import hashlib
import importlib
import io
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from gymnasium.spaces import Discrete
from torch import Tensor, nn

import envs
from agents import config
from agents.checkpoint import RunError, disk, read_args, write_json
from agents.trained import RATES, agent_module, look_up, settings, trained_policy
from envs.base import VecEnv, spawn_seeds
from networks.actors import Categorical
from networks.bottlenecks import VQ
from networks.layers import BatchedLayerNorm, BatchedLinear, layer_norm
from networks.normalize import BatchNorm, RunningNorm
from networks.residual import RMSNorm, Scale, UnitLinear
from networks.sem import SEM

SCHEMA = 1
LIMIT = 1e-5
"""largest error that is let through: of actions in halves of their range, of logits and values over |x|, at least 1"""
OPSET = 18
"""of ONNX: what onnxruntime has read since 1.14"""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
WORLDS = 8
"""environments that observations are recorded in"""

RUN_POLICY = '''\
"""Acts with policy.onnx: `python run_policy.py [OBS.npy [ACTION.npy]]`, or `Policy(folder)(obs)` in your program."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Policy:
    """Actions in the task's own units for raw observations, one or a batch. `about` is what policy.json says."""

    def __init__(self, folder=".", threads=1):
        """Read the bundle in a folder. Raises ValueError where it is not what was written."""
        folder = Path(folder)
        try:
            self.about = json.loads((folder / "policy.json").read_text())
            expected = dict(self.about["sha256"])
            files = {name: (folder / name).read_bytes() for name in ("policy.onnx", "policy.pt2")}
            del self.about["sha256"]["policy.json"]  # that of all the rest of it
            files["policy.json"] = json.dumps(self.about, sort_keys=True).encode()
            damaged = [name for name in files if hashlib.sha256(files[name]).hexdigest() != expected[name]]
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} holds no whole policy: {error!r}") from error
        if damaged:
            raise ValueError(f"{folder / damaged[0]} is damaged: not what was written")
        self.shape, self.dtype = tuple(self.about["observation"]["shape"]), self.about["observation"]["dtype"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._session = onnxruntime.InferenceSession(files["policy.onnx"], options, ["CPUExecutionProvider"])

    def outputs(self, obs):
        """Return what `about` calls its outputs: the action, and of discrete ones logits or values."""
        obs = np.asarray(obs).astype(self.dtype, casting="same_kind", copy=False)
        if obs.shape == self.shape:
            return [rows[0] for rows in self.outputs(obs[None])]
        if obs.shape[1:] != self.shape:
            raise ValueError(f"an observation has shape {self.shape}, this is {obs.shape}")
        return self._session.run(None, {"obs": obs})

    def __call__(self, obs):
        return self.outputs(obs)[0]


if __name__ == "__main__":
    try:
        policy = Policy(Path(__file__).parent)
        drawn = np.abs(100 * np.random.default_rng(0).standard_normal(policy.shape)).astype(policy.dtype)
        action = policy(np.load(sys.argv[1], allow_pickle=False) if sys.argv[1:] else drawn)
    except (OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
    np.save(sys.argv[2], action) if sys.argv[2:] else print(action)
'''


@dataclass
class Args:
    """Write a trained policy as a bundle that runs without this library."""

    run_dir: tyro.conf.Positional[str]
    """of a run: running, done, interrupted or failed"""
    out: str | None = None
    """folder of the bundle; RUN_DIR/export if none is given"""
    force: bool = False
    """replace a bundle that is already there"""
    step: int | None = None
    """frames after which the checkpoint was saved; the newest good one if none is given"""
    observations: int = 1000
    """how many to record in the task, to compare the three on"""


class CannotExport(RunError):
    """The policy is not what a bundle could hold. One line, meant for users."""


# ---- what the task is like -------------------------------------------------------------------------------------------


def to_task(env: VecEnv, action: Tensor) -> np.ndarray:
    """Return actions [B, A] or [B] of the contract as the task receives them: clipped, in its own units and precision.

    An environment that says nothing of its units has the contract's range, [-1, 1], as its own.
    """
    own: Callable[[np.ndarray], np.ndarray] | None = getattr(env, "_to_engine", None)
    if own is not None:
        return own(action.numpy())
    if isinstance(env.action_space, Discrete):
        return action.numpy()
    low, high = (-1.0, 1.0) if env.action_bounds is None else env.action_bounds
    clipped = action.clamp(-1, 1).double().numpy()
    return ((high + low) / 2 + (high - low) / 2 * clipped).astype(np.float32)


def control_dt(env: VecEnv) -> float | None:
    """Return the seconds between two actions, None where nobody knows. A `VecEnv` of your own may have `control_dt`."""
    if env.backend == "envpool":
        own = env._pool.config.get("ctrl_dt")  # type: ignore[attr-defined]
    elif env.backend == "gymnasium":
        own = getattr(env._vector.envs[0].unwrapped, "dt", None)  # type: ignore[attr-defined]
    else:
        own = getattr(env, "control_dt", None)
    rate = look_up(RATES, env.task, 0.0)
    return float(own) if own else 1 / rate if rate else None


def layout(env: VecEnv) -> list[dict[str, Any]]:
    """Return name, start and size of the parts of an observation vector; empty where the backend has no names."""
    readers = getattr(env, "_readers", None)  # of the actor's view and of the critic's
    parts = [(path, size) for path, size, _ in readers[0]._columns] if readers else []
    if env.backend == "gymnasium" and len(parts) == 1:  # MuJoCo tasks tell what their one vector is made of
        own = getattr(env._vector.envs[0].unwrapped, "observation_structure", {})  # type: ignore[attr-defined]
        known = [((name,), size) for name, size in own.items() if size and not name.startswith("skipped")]
        parts = known if sum(size for _, size in known) == parts[0][1] else parts
    if not all(path for path, _ in parts):
        return []
    starts = np.cumsum([0, *(size for _, size in parts)]).tolist()
    return [
        {"name": "/".join(map(str, path)), "start": start, "size": int(size)}
        for (path, size), start in zip(parts, starts, strict=False)
    ]


def describe_action(env: VecEnv) -> dict[str, Any]:
    """Return what policy.json says of the action."""
    if isinstance(env.action_space, Discrete):
        first = int(to_task(env, torch.zeros(1, dtype=torch.int64))[0])
        return {"kind": "discrete", "dtype": "int64", "shape": [], "n": int(env.action_space.n), "start": first}
    high = to_task(env, torch.ones(1, *env.action_space.shape))[0].astype(np.float64)
    low = to_task(env, -torch.ones(1, *env.action_space.shape))[0].astype(np.float64)
    return {
        "kind": "continuous",
        "dtype": "float32",
        "shape": list(low.shape),
        "low": low.tolist(),
        "high": high.tolist(),
        "from_policy": "(low + high) / 2 + (high - low) / 2 * x for x in [-1, 1], in the graph",
    }


# ---- the policy ------------------------------------------------------------------------------------------------------


def first_copy(network: nn.Module) -> nn.Module:
    """Return the network, changed to compute only the first of Q copies where its layers have several."""
    for name, child in network.named_children():
        setattr(network, name, first_copy(child))
    if isinstance(network, SEM | VQ | UnitLinear | Scale | BatchNorm | RMSNorm) and network.copies is not None:
        for name, parameter in network.named_parameters(recurse=False):
            setattr(network, name, nn.Parameter(parameter[0]))
        if isinstance(network, BatchNorm):
            network.mean, network.variance = network.mean[0], network.variance[0]
    if isinstance(network, BatchedLinear):
        plain: nn.Module = nn.Linear(network.weight.shape[1], network.weight.shape[2])
        state = {"weight": network.weight[0].T, "bias": network.bias[0, 0]}
    elif isinstance(network, BatchedLayerNorm):
        plain = layer_norm(network.weight.shape[-1], None)
        state = {"weight": network.weight[0, 0], "bias": network.bias[0, 0]}
    else:
        return network
    plain.load_state_dict(state)
    return plain


class Deployed(nn.Module):
    """Raw observations of a task to actions in its own units: [B, *obs] to [B, A], or to [B] and scores [B, n]."""

    low: Tensor
    high: Tensor
    centre: Tensor
    reach: Tensor

    def __init__(self, agent: Any, action: dict[str, Any]) -> None:
        super().__init__()
        self.scores = "logits" if hasattr(agent, "actor") else "values"  # what discrete actions are chosen by
        actor = getattr(agent, "actor", None) or agent.critic
        parts = [agent.obs_norm, getattr(agent, "trunk", nn.Identity()), actor]
        # Where actor and critic are two copies of one trunk, the actor is the first.
        self.norm, self.trunk, self.actor = (first_copy(copy.deepcopy(part)) for part in parts)
        for x in self.parameters():  # each in memory of its own and in rows, whatever order training likes
            x.data = x.detach().clone(memory_format=torch.contiguous_format)
        clip = getattr(agent.args, "obs_clip", None)  # PPO and PQN bound what they have normalised
        self.clip = clip if isinstance(agent.obs_norm, RunningNorm) else None
        self.shape = action["shape"]
        self.start = action.get("start", 0)
        self.discrete = action["kind"] == "discrete"
        if not self.discrete:
            low, high = (torch.tensor(action[name], dtype=torch.float64) for name in ("low", "high"))
            bounds = {"low": low, "high": high, "centre": (low + high) / 2, "reach": (high - low) / 2}
            for name, value in bounds.items():
                self.register_buffer(name, value.float())
            self.scaled = bool((self.low != -1).any() or (self.high != 1).any())
        self.eval().requires_grad_(False)

    def forward(self, obs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return action, or action and scores."""
        x = self.norm(obs)
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        out = self.actor(self.trunk(x))
        if self.discrete:
            scores = out.log_probs if isinstance(out, Categorical) else out
            best = scores.argmax(-1)
            return (best + self.start if self.start else best), scores
        mode = out if isinstance(out, Tensor) else out.mode()
        if len(self.shape) != 1:
            mode = mode.unflatten(-1, self.shape) if self.shape else mode.squeeze(-1)
        # What lies outside of the range is cut after the mapping, so that rounding does not lead out of it either.
        if self.scaled:
            mode = self.centre + self.reach * mode
        return torch.minimum(torch.maximum(mode, self.low), self.high)

    def sem(self) -> dict[str, Any] | None:
        """Return the setting of the simplicial embedding on the way, None where there is none."""
        blocks = [module for module in self.modules() if type(module) is SEM]
        if not blocks:
            return None
        last = blocks[-1]  # there may be one for every hidden layer
        sizes = {"groups": last.config.groups, "vertices": last.config.vertices}
        return {**sizes, "temperature": float(last.temperature)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporter from telling about packages that are of no use here, and about its own deprecations."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def trace(policy: Deployed, obs: Tensor) -> torch.export.ExportedProgram:
    """Return the policy as a program of any batch size, without the paths of the files that it was made by."""
    example = torch.zeros(2, *obs.shape[1:], dtype=obs.dtype)  # it is saved with the program
    with quiet():
        program = torch.export.export(policy, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    return program


def to_onnx(program: torch.export.ExportedProgram, outputs: Sequence[str]) -> bytes:
    """Return the program as an ONNX model, checked, without the paths of the files that it was made by."""
    with quiet():
        exported = torch.onnx.export(
            program,
            input_names=["obs"],
            output_names=outputs,
            opset_version=OPSET,
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model: Any = exported.model_proto
    graph = model.graph
    for one in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del one.metadata_props[:]
    onnx: Any = sys.modules["onnx"]  # `load_packages` has imported it
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def load_packages() -> Any:
    """Import what is needed beside this library's own packages; returns onnxruntime.

    Raises:
        CannotExport: something is missing.
    """
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise CannotExport(f"{', '.join(missing)} missing: pip install 'semrl[export]'")
    return sys.modules["onnxruntime"]


Runner = Callable[[np.ndarray], list[np.ndarray]]
"""observations [B, *obs] -> [action], or [action, scores]"""


def onnx_runner(runtime: Any, model: bytes) -> Runner:
    """Return what computes an ONNX model, as run_policy.py does."""
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = runtime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return lambda obs: session.run(None, {"obs": obs})


@torch.no_grad()
def torch_runner(module: Callable[[Tensor], Any]) -> Runner:
    """Return what computes a module or a program."""

    @torch.no_grad()
    def run(obs: np.ndarray) -> list[np.ndarray]:
        out = module(torch.from_numpy(obs))
        return [x.numpy() for x in (out if isinstance(out, tuple) else (out,))]

    return run


# ---- does it do the same ---------------------------------------------------------------------------------------------


def record(agent: Any, env: VecEnv, count: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Return what the agent sees and does: observations [count, *obs], and actions as the task gets them."""
    seen, done = [], []
    obs, _ = env.reset(seed)
    for _ in range(-(-count // env.num_envs)):
        action = agent.act(obs)
        seen.append(obs)
        done.append(to_task(env, action))
        obs = env.step(action).obs
    return torch.cat(seen)[:count], np.concatenate(done)[:count]


def worst(action: dict[str, Any], found: list[np.ndarray], agents: np.ndarray, scores: np.ndarray | None) -> float:
    """Return the largest error of a graph's outputs; NaN where one is not finite.

    Args:
        action: what policy.json says of it.
        found: outputs of the graph.
        agents: actions of the agent, as the task gets them.
        scores: logits or values of the agent, where actions are discrete. The graph's choice must also have the score
            of the agent's own, up to the error.
    """
    if scores is None:
        half = (np.array(action["high"]) - np.array(action["low"])) / 2
        gap = np.abs(found[0].astype(np.float64) - agents)
        return float((gap / np.where(half > 0, half, 1)).max())
    rows = np.arange(len(agents))
    own = scores[rows, agents - action["start"]]
    regret = (own - scores[rows, found[0] - action["start"]]) / np.maximum(1, np.abs(own))
    spread = np.abs(found[1].astype(np.float64) - scores) / np.maximum(1, np.abs(scores))
    return float(max(spread.max(), np.abs(regret).max()))


def in_pieces(run: Runner, obs: np.ndarray) -> list[np.ndarray]:
    """Return the outputs for all observations, computed in batches of several sizes, one among them."""
    outputs, first = [], 0
    for size in [1, 2, 3, *[64] * len(obs)]:
        if first >= len(obs):
            break
        outputs.append(run(obs[first : first + size]))
        first += size
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


class Latency(NamedTuple):
    """How long one action takes."""

    median_us: float
    p99_us: float


def latency(run: Callable[[], Any], seconds: float = 0.3) -> Latency:
    """Return the time of a call, measured for about this long after a tenth of it to get warm; at least 20 calls."""
    taken: list[float] = []
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + 1.1 * seconds or len(taken) < 20:
        run()
        if now > start + 0.1 * seconds:
            taken.append(time.perf_counter() - now)
    return Latency(*(round(1e6 * float(np.quantile(taken, share)), 1) for share in (0.5, 0.99)))


# ---- the bundle ------------------------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    """Return the checksum in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


NAMES = ("policy.onnx", "policy.pt2", "policy.json", "run_policy.py")


def check_place(out: Path, force: bool) -> None:
    """See that a bundle may be written there.

    Raises:
        RunError: something is there already; and with `force`, something that is no bundle.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise RunError(f"{out} is no folder")
    with disk(f"read {out}"):
        have = sorted(path.name for path in out.iterdir())
    if have and not force:
        raise RunError(f"{out} exists already: --force replaces a bundle, --out writes elsewhere")
    if foreign := [name for name in have if name not in (*NAMES, "__pycache__")]:
        raise RunError(f"{out} holds {foreign[0]}, which no export has written: choose another --out")


def write_bundle(out: Path, about: dict[str, Any], onnx: bytes, program: torch.export.ExportedProgram) -> None:
    """Write all files, or none: into a folder beside the place, which is then renamed. A bundle that is there goes.

    Raises:
        RunError: the disk refuses; what was there is as it was.
    """
    part, old = (out.with_name(f".{out.name}.{suffix}") for suffix in ("part", "old"))
    with disk(f"write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
        try:
            part.mkdir()
            (part / "policy.onnx").write_bytes(onnx)
            (part / "run_policy.py").write_text(RUN_POLICY)
            with quiet():
                torch.export.save(program, buffer := io.BytesIO())  # torch hides what a disk refuses
            (part / "policy.pt2").write_bytes(buffer.getvalue())
            sums = {name: sha256((part / name).read_bytes()) for name in NAMES if name != "policy.json"}
            about = json.loads(json.dumps({**about, "sha256": sums}))  # as it will be read: tuples are lists
            sums["policy.json"] = sha256(json.dumps(about, sort_keys=True).encode())  # of all the rest of it
            write_json(part / "policy.json", {**about, "sha256": sums})
            for path in part.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            replace_folder(part, out, old)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # the error on its way up is the one that matters
            raise


def replace_folder(part: Path, out: Path, old: Path) -> None:
    """Rename `part` to `out`; what is there is moved to `old` meanwhile, comes back if that fails, else is deleted."""
    shutil.rmtree(old, ignore_errors=True)
    there = out.exists()
    if there:
        os.replace(out, old)
    try:
        os.replace(part, out)
    except BaseException:
        if there:
            os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def versions() -> dict[str, str]:
    """Return what the bundle was made with."""
    names = ("torch", "numpy", *PACKAGES)
    return {"python": sys.version.split()[0], **{name: str(sys.modules[name].__version__) for name in names}}


# ---- the program -----------------------------------------------------------------------------------------------------


def export(args: Args) -> None:
    """Export and print.

    Raises:
        ValueError, RunError: bad input, one line.
    """
    run_dir = Path(args.run_dir)
    out = Path(args.out) if args.out is not None else run_dir / "export"
    check_place(out, args.force)
    module = agent_module(run_dir)
    runtime = load_packages()
    trained = read_args(run_dir, module.Args)
    # The agent as it is deployed: float32, and the best action even where the run evaluates drawn ones.
    plain = {"amp": "off", "eval_sample": False, "eval_epsilon": 0.0}
    now = settings(trained, "cpu")
    now = replace(now, **{f.name: plain[f.name] for f in fields(now) if f.name in plain})
    agent, step = trained_policy(module, now, run_dir, args.step, "exporting")
    torch.set_num_threads(1)

    env = envs.make(now.env_id, WORLDS, now.seed, "cpu", now.backend)
    try:
        obs, acted = record(agent, env, args.observations, spawn_seeds(now.seed, 1, "evaluation")[0])
        action, dt, parts = describe_action(env), control_dt(env), layout(env)
    finally:
        env.close()
    policy = Deployed(agent, action)
    program = trace(policy, obs)
    outputs = ["action", policy.scores] if policy.discrete else ["action"]
    onnx = to_onnx(program, outputs)

    seen = obs.numpy()
    runners = {"policy.onnx": onnx_runner(runtime, onnx), "policy.pt2": torch_runner(program.module())}
    scores = in_pieces(torch_runner(policy), seen)[1].astype(np.float64) if policy.discrete else None
    errors = {name: worst(action, in_pieces(run, seen), acted, scores) for name, run in runners.items()}
    for name, error in errors.items():
        if not error <= LIMIT:
            raise CannotExport(f"{name} differs from the agent by {error:.2g}, more than {LIMIT:g}: nothing is written")
    one = obs[:1]
    times = {
        "onnxruntime": latency(lambda: runners["policy.onnx"](seen[:1])),
        "torch": latency(lambda: agent.act(one)),
    }

    sem = policy.sem()
    about = {
        "schema": SCHEMA,
        "task": env.task,
        "backend": env.backend,
        "agent": module.__name__.rpartition(".")[2],
        "exp_name": trained.exp_name,
        "seed": trained.seed,
        "frames": step,
        "source": run_dir.resolve().name,
        "observation": {
            "name": "obs",
            "dtype": seen.dtype.name,
            "shape": list(seen.shape[1:]),
            "layout": parts,
            "normaliser": "in the graph" if isinstance(agent.obs_norm, RunningNorm) else None,
        },
        "action": action,
        "outputs": outputs,
        "control_dt_s": dt,
        "deterministic": True,
        "sem": sem,
        "parity": {"observations": len(seen), "limit": LIMIT, "largest_error": errors},
        "latency": {name: {**one._asdict(), "batch": 1, "threads": 1} for name, one in times.items()},
        "opset": OPSET,
        "versions": versions(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_bundle(out, about, onnx, program)
    print(report(about, out))


def report(about: dict[str, Any], out: Path) -> str:
    """Return the lines that say what was written."""
    obs, action, sem = about["observation"], about["action"], about["sem"]
    dt, parts = about["control_dt_s"], ", ".join(f"{part['name']} {part['size']}" for part in obs["layout"])
    setting = f"SEM L={sem['groups']} V={sem['vertices']} tau={sem['temperature']:g}" if sem else "no SEM"
    what = f"one of {action.get('n')}, and {about['outputs'][-1]}"
    if action["kind"] == "continuous":
        what = f"{action['shape']} from {np.min(action['low']):g} to {np.max(action['high']):g}"
    taken = ", ".join(f"{name} {one['median_us']:.0f} µs" for name, one in about["latency"].items())
    files = ", ".join(f"{name} {(out / name).stat().st_size / 1024:.0f} KiB" for name in NAMES[:2])
    parity = about["parity"]
    rows = {
        "policy": f"{about['agent']} after {about['frames']:,} frames, {setting}",
        "task": f"{about['task']} by {about['backend']}, " + (f"{dt:g} s per action" if dt else "time step unknown"),
        "obs": f"{obs['dtype']} {obs['shape']}" + (f": {parts}" if parts else ""),
        "action": f"{action['dtype']}, {what}",
        "parity": f"largest error {max(parity['largest_error'].values()):.1e} of {parity['limit']:g} allowed, "
        f"over {parity['observations']:,} observations",
        "latency": f"{taken} (median, batch 1, one thread)",
        "bundle": f"{out}: {files}, policy.json, run_policy.py",
    }
    return "\n".join(f"{name:>8}  {text}" for name, text in rows.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Export as the command line asks; returns the exit status. Bad input is one line on stderr and status 2."""
    args = config.parse(Args, None, argv).args
    config.positive(args, "observations")
    config.require(args.step is None or args.step >= 0, f"--step {args.step}: must be 0 or above")
    try:
        export(args)
    except (ValueError, RunError) as error:
        config.fail(str(error))
    return 0


if __name__ == "__main__":
    config.program(main)
