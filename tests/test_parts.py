"""benchmarks/parts.py: what stands in for an optimisation leads to the same weights, and the command times it."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents import config
from benchmarks import parts, speed
from benchmarks.parts import CONTROL, PARTS, TASKS, Pair, times_as_long
from benchmarks.rivals import Turn

ROOT = Path(__file__).resolve().parents[1]
OFF_POLICY = "--env-id PointMass-v0 --size small --num-envs 8"
IMAGES = "--env-id Pong-v5 --backend envpool --size small --num-envs 2 --num-steps 8 --num-minibatches 2"
SMALL = {
    "fasttd3": f"{OFF_POLICY} --batch-size 64",
    "fasttd3-large": f"{OFF_POLICY} --batch-size 2048 --critic-hidden 64 256 --sem-critic-groups 4 "
    "--sem-critic-vertices 64 --clipped-double-q",
    "fastsac": f"{OFF_POLICY} --batch-size 64",
    "ppo": "--env-id PointMass-v0 --size small --num-envs 8 --num-steps 16 --num-minibatches 4 --update-epochs 2",
    "ppo-images": f"{IMAGES} --update-epochs 2",
    "pqn-images": f"{IMAGES} --update-epochs 2",
}
NUMBERS = ("twins", "paired", "flat", "simplices", "activations", "overlap", "gradient", "channels", "image norm")
SAME = [(task, part) for part in NUMBERS for task in PARTS[part].tasks]


def built(task: str) -> tuple[ModuleType, Any, Any, list[Any]]:
    """The program of a task, its settings, its agent, and what comes with that."""
    module = importlib.import_module(f"agents.{TASKS[task].agent}")
    words = f"{SMALL[task]} --amp off --threads 1 --log-every 0 --eval-every 0 --sem".split()
    args = module.resolve(config.parse(module.Args, module.presets, words).args)
    agent, *rest = module.build(args)
    return module, args, agent, rest


def matching(stacked: nn.Module, each: nn.ModuleList) -> Iterator[tuple[Tensor, Tensor]]:
    """The weights of networks that are apart, and those that they have where all are one."""
    weights = dict(stacked.named_parameters())
    for copy, network in enumerate(each):
        for name, x in network.named_parameters():
            own = weights[name].detach()[copy]
            linear = isinstance(network.get_submodule(name.rpartition(".")[0]), nn.Linear)
            yield x.detach(), own.T if linear and x.ndim == 2 else own.view_as(x)


def networks_apart(part: str, agent: Any, plain: Any) -> list[tuple[Tensor, Tensor]]:
    """The same of an agent without a part, and one with it."""
    if part == "twins":
        pairs = [matching(getattr(agent, name), getattr(plain, name).each) for name in ("critic", "target")]
        return [*chain(*pairs), *zip(plain.actor.parameters(), agent.actor.parameters(), strict=True)]
    heads = zip(
        [*plain.actor.parameters(), *plain.critic.parameters()],
        [*agent.actor.parameters(), *agent.critic.parameters()],
        strict=True,
    )
    return [*matching(agent.trunk, plain.trunk[0].each), *heads]


def learned(args: Any, agent: Any, rest: list[Any]) -> list[Tensor]:
    """What an agent does after some updates, first where it began and then where it is."""
    env = next(x for x in rest if hasattr(x, "step_send"))
    torch.manual_seed(1)
    obs, critic_obs = env.reset(seed=3)
    start = obs.clone()
    if hasattr(agent, "estimate"):
        for _ in range(2):
            rows, steps = [], []
            for _ in range(args.num_steps):
                rows.append(agent.explore(obs, critic_obs) if hasattr(agent, "policy") else agent.explore(obs))
                env.step_send(rows[-1]["action"])
                steps.append(env.step_recv())
                obs, critic_obs = steps[-1].obs, steps[-1].critic_obs
            agent.observe(steps)
            agent.update(agent.estimate(rows, steps))
    else:
        replay = rest[0]
        replay.start(obs, critic_obs)
        for count in range(40):
            action = agent.explore(obs)
            env.step_send(action)
            for _ in range(count // 20):
                agent.update(replay.sample(args.batch_size))
            step = env.step_recv()
            replay.add(action, step)
            agent.observe(step)
            obs = step.obs
    return [
        agent.act(start).float(),
        agent.act(obs).float(),
        *(x.detach().flatten() for x in agent.modules.parameters()),
    ]


@pytest.mark.parametrize(("task", "part"), SAME)
def test_both_ways_lead_to_the_same_weights(task: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, args, agent, rest = built(task)
    with monkeypatch.context() as patch:
        PARTS[part].off(importlib.import_module(f"agents.{TASKS[task].agent}"), patch.setattr)  # type: ignore[misc]
        _, _, plain, plain_rest = built(task)
        if part in ("twins", "paired"):
            with torch.no_grad():
                for own, in_one in networks_apart(part, agent, plain):
                    own.copy_(in_one)
        if hasattr(agent, "noise_scale"):
            plain.noise_scale = agent.noise_scale.clone()
        begun = torch.cat([x.detach().flatten() for x in plain.modules.parameters()])
        theirs = learned(args, plain, plain_rest)
    ours = learned(args, agent, rest)
    assert not torch.equal(begun, torch.cat(theirs[2:]))
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
    weights = zip(ours[2:], theirs[2:], strict=True)
    for mine, other in networks_apart(part, agent, plain) if part in ("twins", "paired") else weights:
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_the_command_times_training_without_each_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    words = "parts --tasks fasttd3 ppo --parts again flat gradient --repeats 3"
    speed.main([*words.split(), "--out", str(out)])
    rows = json.loads(out.read_text())["results"]
    expected = [("fasttd3", CONTROL), ("fasttd3", "flat"), ("ppo", CONTROL), ("ppo", "flat"), ("ppo", "gradient")]
    assert [(row["task"], row["part"]) for row in rows] == expected
    said = capsys.readouterr().out
    for row in rows:
        assert row["frames_per_s"] > 0
        for clock in ("wall", "cpu"):
            ratios = sorted(row[clock]["ratios"])
            assert len(ratios) == 3 and row[clock]["ratio"] == ratios[1]
            assert 0 < row[clock]["low"] <= row[clock]["ratio"] <= row[clock]["high"]
        assert f"{row['part']}: {row['about']}" in said


def test_ratios_are_of_times_per_frame() -> None:
    pairs = [Pair(Turn(10, 1.0, 2.0), Turn(20, s, 2.0)) for s in (8.0, 4.0, 1.0, 2.0, 6.0)]
    seen = times_as_long(pairs, "wall_s")
    assert seen["ratios"] == [4.0, 2.0, 0.5, 1.0, 3.0] and (seen["low"], seen["ratio"], seen["high"]) == (1, 2, 3)
    assert times_as_long(pairs, "cpu_s")["ratio"] == 0.5


def test_what_is_only_there_when_asked_for_is_in_the_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled training takes half the time here, training without one vector of parameters three times as much."""
    seconds, lines = {"": 1.0, "compiler": 0.5, "flat": 3.0}, []

    class Fake:
        def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
            self.part = json.loads(command[-1])["part"]
            lines.append(parts.flags_of(TASKS["ppo"], PARTS[self.part] if self.part else None))

        def __enter__(self) -> "Fake":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def start(self) -> tuple[dict[str, str], Turn]:
            return {}, Turn(1, 1.0, 1.0)

        def turn(self, frames: int) -> Turn:
            return Turn(frames, seconds[self.part], seconds[self.part])

    monkeypatch.setattr(parts, "Program", Fake)
    rows, _ = parts.compare("ppo", ["compiler", "flat"], 2)
    assert {row["part"]: row["wall"]["ratio"] for row in rows} == {"compiler": 2.0, "flat": 3.0}
    assert [("--compile" in line, "--sem" in line) for line in lines] == [(False, True), (True, True), (False, True)]


def test_a_part_is_of_tasks_that_there_are() -> None:
    assert all(set(part.tasks) <= set(TASKS) for part in PARTS.values())
    assert set(parts.NAMES) == set(TASKS)


# ---- all of them at once ---------------------------------------------------------------------------------------------


def plainly(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "plain.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("agent", ["fasttd3", "fastsac", "ppo", "pqn"])
def test_an_agent_without_any_trains(agent: str, tmp_path: Path) -> None:
    task = "ClosedFormDiscrete-v0" if agent == "pqn" else "PointMass-v0"
    words = f"--sem --env-id {task} --size small --num-envs 4 --total-timesteps 640 --eval-every 320 --eval-envs 2"
    words += " --num-steps 16 --num-minibatches 2" if agent in ("ppo", "pqn") else " --learning-starts 64"
    done = plainly(agent, *words.split(), "--device", "cpu", "--quiet", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "final evaluation" in done.stdout
    assert json.loads((tmp_path / "run" / "config.json").read_text())["amp"] == "off"
    resumed = plainly(agent, "--resume", str(tmp_path / "run"), "--total-timesteps", "960", "--quiet")
    assert resumed.returncode == 0 and "final evaluation" in resumed.stdout, resumed.stderr


def test_which_agents_there_are_is_said() -> None:
    done = plainly("sac")
    assert done.returncode == 2
    assert done.stderr == "error: 'sac': name the agent first, fastsac or fasttd3 or ppo or pqn\n"
    assert plainly().returncode == 2 and "plain.py fasttd3" in plainly("--help").stdout
