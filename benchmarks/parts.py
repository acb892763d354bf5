"""What each optimisation of training on a CPU brings: the same training with all of them, and without one of them.

    python benchmarks/speed.py parts                       # all tasks, half an hour
    python benchmarks/speed.py parts --tasks fasttd3 --parts twins overlap

Every program trains in a process of its own, with an agent of this repository and SEM; in all but one of them a part of
the code has been replaced by what one would write first. What agents do only when asked, `--compile`, is the other way
round: one program has it, and the rest train without. Each of these takes turns of about a second with the one that
has all parts, so that whatever else the machine does hits both alike. `times as long` is the median of the ratios of
two turns, without the part to with it, with their quartiles behind it; a second program with all parts shows what noise
alone does. A part that brings less than 3% everywhere has no business in the code. That both ways lead to the same
weights is shown by tests/test_parts.py.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from agents import machine
from benchmarks.rivals import FOREVER, Gate, Program, Turn, mute, versions
from networks import layers, sem, torso

WALKER = "--env-id WalkerWalk-v1 --backend envpool --num-envs 16 --learning-starts 160"
CHEETAH = "--env-id HalfCheetah-v5 --backend envpool --num-envs 16"
PONG = "--env-id Pong-v5 --backend envpool --num-envs 8"


class Task(NamedTuple):
    """A training that is timed."""

    agent: str
    flags: str
    turn: int
    """frames that each program trains for in its turn"""
    about: str


Name = Literal["fasttd3", "fasttd3-large", "fastsac", "ppo", "ppo-images", "pqn-images"]
NAMES: tuple[Name, ...] = get_args(Name)
TASKS: dict[str, Task] = {
    "fasttd3": Task("fasttd3", f"{WALKER} --size small", 400, "small, walker-walk, batch 256"),
    "fasttd3-large": Task(
        "fasttd3",
        f"{WALKER} --size small --batch-size 2048 --actor-hidden 512 256 128 --critic-hidden 1024 512 256 "
        "--sem-critic-groups 4 --sem-critic-vertices 64 --clipped-double-q",
        96,
        "reference networks, walker-walk, batch 2,048",
    ),
    "fastsac": Task("fastsac", f"{CHEETAH} --size small --learning-starts 160", 400, "small, HalfCheetah"),
    "ppo": Task("ppo", f"{CHEETAH} --size small", 2_048, "small, HalfCheetah"),
    "ppo-images": Task("ppo", f"{PONG} --size small", 1_024, "Pong"),
    "pqn-images": Task("pqn", f"{PONG} --size small", 1_024, "Pong"),
}
OFF_POLICY = ("fasttd3", "fasttd3-large", "fastsac")
ON_POLICY = ("ppo", "ppo-images", "pqn-images")
IMAGES = ("ppo-images", "pqn-images")
CONTROL = "again"
"""a part that is none: the same program twice"""


# ---- what one would write first --------------------------------------------------------------------------------------

Set = Callable[[Any, str, Any], object]
"""setattr"""


def apart(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of critics of a kind each of which is a network of its own: [B, C], [B, A] to [Q, B, ...]."""

    class Apart(kind):  # type: ignore[misc, valid-type]  # agents ask what kind they have
        def __init__(self, *sizes: Any, critics: int = 2, **style: Any) -> None:
            nn.Module.__init__(self)
            self.each = nn.ModuleList(kind(*sizes, critics=1, **style) for _ in range(critics))

        @property
        def support(self) -> Any:
            return self.each[0].support

        def forward(self, *inputs: Any) -> Tensor:
            return torch.cat([critic(*inputs) for critic in self.each])

    return Apart


class Stacked(nn.Module):
    """Hidden layers of actor and critic, each a network of its own: [B, D] to [2, B, H]."""

    def __init__(self, *each: nn.Module) -> None:
        super().__init__()
        self.each = nn.ModuleList(each)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of each."""
        return torch.stack([layers(x) for layers in self.each])


class Tensors:
    """In the place of `Flat`: parameters as they are, with a gradient each."""

    def __init__(self, parameters: Any, spheres: Any = ()) -> None:
        self.parameters = list(parameters)

    @property
    def vector(self) -> "Tensors":
        """What gets the gradient."""
        return self

    def gradient(self, outputs: Any, gradients: Any = None) -> tuple[Tensor, ...]:
        """Return the gradients."""
        return torch.autograd.grad(outputs, self.parameters, gradients)

    def differentiate(self, outputs: Any, gradients: Any = None) -> None:
        """Set the gradients."""
        self.grad = self.gradient(outputs, gradients)

    @property
    def grad(self) -> Any:
        """The gradients."""
        return tuple(parameter.grad for parameter in self.parameters)

    @grad.setter
    def grad(self, grads: tuple[Tensor, ...]) -> None:
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = grad

    def clip(self, max_norm: float) -> None:
        """Scale the gradients down."""
        clip_grad_norm_(self.parameters, max_norm)

    @torch.no_grad()
    def lerp(self, other: "Tensors", share: float) -> None:
        """Move towards other parameters."""
        for mine, theirs in zip(self.parameters, other.parameters, strict=True):
            mine.lerp_(theirs, share)


class Optimizer:
    """In the place of `AdamW` and `RAdam`: torch's own."""

    kind: Any = torch.optim.AdamW

    def __init__(self, tensors: Tensors, lr: float, betas: Any = (0.9, 0.999), eps: float = 1e-8, **more: Any) -> None:
        self.lr = torch.tensor(lr)
        decay = {} if self.kind is torch.optim.RAdam else {"weight_decay": 0.0}
        self.optimizer = self.kind(tensors.parameters, lr, betas, eps, **(decay | more))

    def step(self) -> None:
        """Take a step at the learning rate of now."""
        self.optimizer.param_groups[0]["lr"] = self.lr.item()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.load_state_dict(state)


class Rectified(Optimizer):
    """The same for RAdam."""

    kind = torch.optim.RAdam


def critics_apart(agent: ModuleType, put: Set) -> None:
    """Each critic is a network of its own."""
    for name in ("CategoricalCritics", "ScalarCritics"):
        if hasattr(agent, name):
            put(agent, name, apart(getattr(agent, name)))


def hidden_apart(agent: ModuleType, put: Set) -> None:
    """PPO's actor and critic are networks of their own."""
    together = agent.hidden_layers

    def layers(kind: Any, width: int, hidden: Any, block: Any, copies: int | None, *style: Any) -> Any:
        each = [together(kind, width, hidden, block, None, *style) for _ in range(copies or 1)]
        return (nn.Sequential(Stacked(*(x for x, _ in each))), each[0][1]) if copies else each[0]

    put(agent, "hidden_layers", layers)


def tensor_by_tensor(agent: ModuleType, put: Set) -> None:
    """Gradients, optimiser and target go parameter by parameter."""
    put(agent, "Flat", Tensors)
    for name, plain in (("AdamW", Optimizer), ("RAdam", Rectified)):
        if hasattr(agent, name):
            put(agent, name, plain)


def in_turn(agent: ModuleType, put: Set) -> None:
    """The learner waits while the environments step."""
    made = agent.envs.make

    def make(*args: Any, **options: Any) -> Any:
        env = made(*args, **options)
        send, receive, seen = env.step_send, env.step_recv, []

        def step(action: Tensor) -> None:
            send(action)
            seen.append(receive())

        env.step_send, env.step_recv = step, seen.pop
        return env

    put(agent.envs, "make", make)


def freed(agent: ModuleType, put: Set) -> None:
    """The C library hands freed memory back to the system."""
    put(machine, "keep_freed_memory", lambda: None)


def by_torch(agent: ModuleType, put: Set) -> None:
    """A SEM block is layer norm and a softmax along the last dimension."""
    put(sem, "suits", lambda *_: False)
    put(sem, "SHORT", 0)


def activations_apart(agent: ModuleType, put: Set) -> None:
    """A layer norm and the activation behind it are two layers of torch."""
    put(layers, "suits", lambda *_: False)


def all_cores(agent: ModuleType, put: Set) -> None:
    """The learner takes all cores, however little there is to do."""
    put(machine, "learner_threads", lambda rows, hidden: machine.available_cores())


def one_core(agent: ModuleType, put: Set) -> None:
    """The learner takes one core, however much there is to do."""
    put(machine, "learner_threads", lambda rows, hidden: 1)


def by_autograd(agent: ModuleType, put: Set) -> None:
    """PPO's losses are written down and differentiated, minibatch by minibatch."""

    def differentiate(self: Any, batch: dict[str, Tensor]) -> Any:
        args, weight = self.args, batch["weight"]
        with self.autocast:
            policy, value = self(batch["obs"], batch.get("critic_obs", batch["obs"]))
        log_ratio = policy.log_prob(batch["action"]) - batch["log_prob"]
        ratio, advantage, entropy = log_ratio.exp(), batch["advantage"], policy.entropy()
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        policy_loss = -(torch.minimum(advantage * ratio, advantage * clipped) * weight).sum()
        error = (value - batch["target"]).square()
        if args.clip_vloss:
            error = error.maximum((value.clamp(batch["low"], batch["high"]) - batch["target"]).square())
        value_loss = 0.5 * (error * weight).sum()
        self.flat.differentiate(policy_loss - args.ent_coef * (entropy * weight).sum() + args.vf_coef * value_loss)
        with torch.no_grad():  # for the logs, of each minibatch
            ((log_ratio.expm1() - log_ratio) * weight).sum()
            (((ratio - 1).abs() > args.clip_coef).float() * weight).sum()
        return agent.Seen(log_ratio.detach(), value.detach(), entropy.detach())

    put(agent.PPO, "differentiate", differentiate)


def channels_first(agent: ModuleType, put: Set) -> None:
    """Images keep the order in which they come."""
    learner: Any = agent.PPO if hasattr(agent, "PPO") else agent.PQN
    estimate = learner.estimate

    def as_they_come(self: Any, *args: Any) -> Any:
        rollout = estimate(self, *args)
        rollout["obs"] = rollout["obs"].contiguous()
        return rollout

    put(agent, "take", lambda x, rows: x.index_select(0, rows))
    put(learner, "estimate", as_they_come)


def image_norm(agent: ModuleType, put: Set) -> None:
    """Images are normalised by torch's layer norm, in its own order of channels, rows and columns."""
    put(torso, "ImageNorm", lambda shape, eps: nn.LayerNorm((shape[-1], *shape[:-1]), eps))


class Part(NamedTuple):
    """An optimisation."""

    tasks: tuple[str, ...]
    """where it is used"""
    off: Callable[[ModuleType, Set], None] | None
    """puts what one would write first in its place"""
    about: str
    flags: str = ""
    """that switch it off"""
    on: str = ""
    """flags that switch it on, where agents have it only when asked: then it is the other program that goes without"""


PARTS = {
    CONTROL: Part(tuple(TASKS), None, "nothing: the same program again"),
    "twins": Part(OFF_POLICY, critics_apart, "both critics in one batched product"),
    "paired": Part(("ppo",), hidden_apart, "actor and critic in one batched product"),
    "flat": Part((*OFF_POLICY, *ON_POLICY), tensor_by_tensor, "one vector of parameters, one call of AdamW"),
    "simplices": Part(tuple(TASKS), by_torch, "norm and softmax of a SEM block in one pass, in C++"),
    "activations": Part(("fastsac",), activations_apart, "layer norm and activation in one pass, in C++"),
    "memory": Part(tuple(TASKS), freed, "freed memory is kept"),
    "bfloat16": Part((*OFF_POLICY, *IMAGES), None, "products in bfloat16", "--amp off"),
    "overlap": Part(OFF_POLICY, in_turn, "environments step while the learner learns"),
    "one thread": Part(("fasttd3", "fastsac", "ppo"), all_cores, "one thread for small updates"),
    "all threads": Part(("fasttd3-large",), one_core, "all cores for large updates"),
    "gradient": Part(("ppo", "ppo-images"), by_autograd, "gradients of PPO's losses by hand"),
    "channels": Part(IMAGES, channels_first, "images with the channels last in memory"),
    "compiler": Part(tuple(TASKS), None, "gradients compiled as one region (`--compile`)", on="--compile"),
    "image norm": Part(("pqn-images",), image_norm, "layer norm of images in the order that they have in memory"),
}


@dataclass
class Args:
    """Time training without each of its optimisations."""

    tasks: tuple[Name, ...] = NAMES
    """what to train"""
    parts: tuple[str, ...] = ()
    """which optimisations, as the table names them before the colon; all by default"""
    repeats: int = 15
    """pairs of turns for each part that count"""
    out: Path | None = None
    """JSON file for settings, machine and every number"""


# ---- a program -------------------------------------------------------------------------------------------------------


def flags_of(task: Task, part: Part | None) -> list[str]:
    """Return the command line of a program."""
    quiet = f"--total-timesteps {FOREVER} --log-every 0 --eval-every 0 --save-every 0 --quiet --sem"
    return f"{task.flags} {quiet} {f'{part.flags} {part.on}' if part else ''}".split()


def serve(text: str) -> None:
    """Train for `parts` of this library, without the part that the order names; over stdin and stdout."""
    order = json.loads(text)
    task, part = TASKS[order["task"]], PARTS[order["part"]] if order["part"] else None
    reports = mute()
    agent = import_module(f"agents.{task.agent}")
    if part is not None and part.off is not None:
        part.off(agent, setattr)
    print(json.dumps(versions()), file=reports, flush=True)
    gate = Gate(sys.stdin, reports)
    agent.Run.progress = lambda run, frames: gate(frames, run.args.amp)
    sys.exit(agent.main(flags_of(task, part)))


# ---- the benchmark ---------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two turns, one after the other."""

    whole: Turn
    """of the program with all parts"""
    without: Turn


def times_as_long(pairs: Sequence[Pair], clock: Literal["wall_s", "cpu_s"]) -> dict[str, Any]:
    """Return the ratios of time per frame without the part to with it, their median and their quartiles."""
    ratios = []
    for whole, without in pairs:
        ratios.append(getattr(without, clock) / without.frames * whole.frames / getattr(whole, clock))
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio": median, "low": low, "high": high, "ratios": ratios}


def results(name: str, pairs: dict[str, list[Pair]]) -> list[dict[str, Any]]:
    """Return a row for each part: how many times as long training takes without it."""
    return [
        {
            "task": name,
            "training": f"{TASKS[name].agent}, {TASKS[name].about}",
            "part": part,
            "about": PARTS[part].about,
            "frames_per_s": statistics.median(pair.whole.frames / pair.whole.wall_s for pair in seen),
            "precision": "bfloat16" if seen[0].whole.precision == "bfloat16" else "float32",
            "wall": times_as_long(seen, "wall_s"),
            "cpu": times_as_long(seen, "cpu_s"),
        }
        for part, seen in pairs.items()
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows of one task as text."""
    speed = statistics.median(row["frames_per_s"] for row in rows)
    lines = [f"{rows[0]['training']}: {speed:,.0f} frames/s in {rows[0]['precision']}"]
    lines += [f"  {'without':<76}{'times as long':<22}{'in processor time':<22}".rstrip()]
    for row in rows:
        spreads = (f"{of['ratio']:.3f} [{of['low']:.3f}, {of['high']:.3f}]" for of in (row["wall"], row["cpu"]))
        lines.append(f"  {row['part'] + ': ' + row['about']:<76}{''.join(f'{x:<22}' for x in spreads)}".rstrip())
    return "\n".join(lines)


def compare(name: str, parts: Sequence[str], repeats: int) -> tuple[list[dict[str, Any]], dict[str, str | None]]:
    """Return what a task has shown, and the versions of what has trained.

    Raises:
        Missing: a program does not run.
    """
    with ExitStack() as stack:

        def start(part: str) -> tuple[Program, dict[str, str | None], Turn]:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            command = [sys.executable, __file__, json.dumps({"task": name, "part": part})]
            program = stack.enter_context(Program(command, folder, {}))
            return program, *program.start()

        whole, installed, first = start("")
        without = {part: start(part) for part in parts if name in PARTS[part].tasks}
        if first.precision == "off":  # the hardware has no bfloat16
            without.pop("bfloat16", None)
        pairs: dict[str, list[Pair]] = {part: [] for part in without}
        for repeat in range(repeats + 1):
            for part, (program, *_) in without.items():
                sides = (whole, program) if repeat % 2 == 0 else (program, whole)
                turns = {side: side.turn(TASKS[name].turn) for side in sides}
                pair = turns[whole], turns[program]
                pairs[part].append(Pair(*(pair[::-1] if PARTS[part].on else pair)))
    return results(name, {part: seen[1:] for part, seen in pairs.items()}), installed


def run(args: Args, report: dict[str, Any]) -> None:
    """Run the tasks, print their tables, add to the report what they have shown, and write it.

    Raises:
        Missing: a program does not run.
    """
    print(f"times      median [quartiles] of {args.repeats} pairs of turns\n")
    report |= {"results": [], "versions": {}}
    for name in args.tasks:
        rows, report["versions"] = compare(name, args.parts or tuple(PARTS), args.repeats)
        if rows:
            print(table(rows) + "\n", flush=True)
        report["results"] += rows
        if args.out is not None:  # after each task: what is there is not lost with the next
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    if args.out is not None:
        print(f"every number: {args.out}")


if __name__ == "__main__":
    serve(sys.argv[1])
