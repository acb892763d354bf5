"""What is compiled is held against what is not, and gives way where it differs or where there is no compiler."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import envs
from agents import fastsac, fasttd3, ppo, pqn
from agents.compiled import Compiled
from agents.config import parse
from networks.flat import AdamW, Flat

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")


class Agent:
    """A small network that learns to give noise."""

    device = torch.device("cpu")

    def __init__(self, factor: float = 1.0) -> None:
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))})
        self.flat = Flat(self.modules.parameters())
        self.optimizer = AdamW(self.flat, 0.1)
        self.factor = factor
        self.compiled = Compiled(self, [self.flat], "descent", "act")

    def descent(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.modules["net"](x)
        loss = self.factor * (out + torch.randn_like(out)).square().sum()
        return loss.detach(), self.flat.gradient(loss)

    @torch.no_grad()
    def act(self, x: Tensor) -> Tensor:
        return self.modules["net"](x)

    def gradient(self) -> Tensor:
        return self.descent(torch.ones(5, 3))[1]

    def verify(self, tolerance: float = 1e-3) -> str:
        return self.compiled.verify(tolerance, self.both, "descent", "act")

    def both(self) -> Tensor:
        return torch.cat([self.gradient(), self.act(torch.ones(2, 3)).flatten()])


def test_equal_numbers_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fake(monkeypatch, calls, lambda region, inputs: region(inputs))
    agent = Agent()
    agent.gradient()
    assert calls == []  # not before it has been looked at
    before = torch.random.get_rng_state()
    said = agent.verify(1e-6)
    assert said.startswith("compiled in ") and said.endswith("descent and act differ by 0e+00 relative to the norm")
    assert torch.equal(torch.random.get_rng_state(), before)
    agent.gradient()
    assert calls == ["compiled"] * 3  # two in the comparison, and from now on
    assert agent.flat.leaf is None and agent.modules["net"][0].weight is agent.flat.parameters[0]


@pytest.mark.parametrize("wrong", [-1.0, 1.01, float("nan")])
@pytest.mark.parametrize("which", ["descent", "act"])
def test_what_differs_gives_way(monkeypatch: pytest.MonkeyPatch, wrong: float, which: str) -> None:
    calls: list[str] = []

    def run(region: Any, inputs: Any) -> Any:
        out = region(inputs)
        if isinstance(out, tuple):
            return (out[0], out[1] * wrong) if which == "descent" else out
        return out * wrong if which == "act" else out

    fake(monkeypatch, calls, run)
    agent = Agent()
    check = agent.gradient if which == "descent" else lambda: agent.act(torch.ones(2, 3))
    said = agent.compiled.verify(1e-3, check, which)
    assert said.startswith(f"not compiled: after 0.0 s, {which} differs by ") and said.endswith(
        "relative to the norm, more than 0.001"
    )
    check()
    assert calls == ["compiled"] and {*agent.compiled.unverified} == {"descent", "act"} - {which}


def test_without_a_compiler_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise RuntimeError("no g++ here\nand many more lines")

    fake(monkeypatch, [], refuse)
    agent = Agent()
    assert agent.verify() == "not compiled: RuntimeError: no g++ here"
    assert agent.gradient().shape == agent.flat.vector.shape


def test_a_failure_within_a_region_leaves_the_networks_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, [], lambda region, inputs: region(inputs))
    agent = Agent()
    plain, failed = agent.gradient().shape, []

    def gradient(outputs: Tensor, *_: Any) -> Tensor:
        failed.append(agent.flat.leaf)
        raise ValueError("once")

    with monkeypatch.context() as patch:
        patch.setattr(agent.flat, "gradient", gradient)
        with pytest.raises(ValueError, match="once"):
            agent.verify()
    assert failed[0] is not None  # it was within the region
    assert agent.flat.leaf is None and agent.gradient().shape == plain


def test_what_is_wrong_without_a_compiler_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, [], lambda region, inputs: region(inputs))
    agent = Agent()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        agent.compiled.verify(1e-3, lambda: agent.descent(torch.ones(5, 4))[1], "descent")


@needs_compiler
@pytest.mark.slow
def test_compiled_code_draws_what_plain_code_draws_and_new_numbers_each_time() -> None:
    agent = Agent()
    assert agent.verify(1e-5).startswith("compiled in ")
    fast, again = agent.gradient(), agent.gradient()
    assert not torch.equal(fast, again)  # two replays of one graph


@needs_compiler
@pytest.mark.slow
def test_regions_follow_their_vectors_and_are_not_mixed_up() -> None:
    """Agents that differ in a number only, and one network that moves after it has been compiled."""
    one, two = Agent(), Agent(factor=3.0)
    for agent in (one, two):
        assert agent.verify(1e-5).startswith("compiled in ")
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        for agent in (one, two):
            found = []
            for method in (agent.descent, partial(Agent.descent, agent)):  # what is compiled, and what is not
                torch.manual_seed(2)
                found.append(method(x))
            for fast, plain in zip(*found, strict=True):
                torch.testing.assert_close(fast, plain)
            torch.testing.assert_close(agent.act(x), Agent.act(agent, x))
            agent.flat.vector.grad = found[0][1]
            agent.optimizer.step()
    assert one.act(x).shape == (5, 2) and one.act(x[:3]).shape == (3, 2)  # other sizes are compiled anew


AGENTS = {"fasttd3": fasttd3, "fastsac": fastsac, "ppo": ppo, "pqn": pqn}
FEW = [
    *(("fastsac", "--sem"), ("ppo", "--bottleneck gumbel-st"), ("pqn", "--bottleneck vq")),
    ("fasttd3", "--sem --torso flashsac --sem-position input"),
]
MANY = [
    *("--sem", "--sem --sem-learned-temperature", "--sem --sem-temperature-end 0.5", "--bottleneck vq"),
    *("--bottleneck gumbel-st", "--bottleneck fta --sem-position every", "--bottleneck l2 --torso simba"),
    *("--sem --torso simbav2", "--sem --torso flashsac --sem-position input", "--bottleneck crelu"),
]
CASES = [(name, networks) for name in AGENTS for networks in MANY if (name, "flashsac" in networks) != ("ppo", True)]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("name", "networks"), CASES if os.environ.get("SEMRL_LONG") else FEW)
def test_networks_can_be_compiled(name: str, networks: str) -> None:
    """One region for each, without a break, and the gradients of plain code. SEMRL_LONG=1 takes all, in 15 minutes."""
    agent, check, act = made(AGENTS[name], f"--compile --amp off {networks}")
    gradients = ("descent",) if name in ("ppo", "pqn") else ("critic_gradient", "actor_gradient")
    acting = [name for name in agent.compiled.unverified if name not in gradients]
    assert len(agent.compiled.unverified) == len(gradients) + len(acting)
    for _ in range(2):
        for seen, names in ((check, gradients), (act, acting)):
            if names:
                said = agent.compiled.verify(1e-3, seen, *names)
                assert said.startswith("compiled in "), said
        agent.anneal(0.7)  # and then with other numbers in the same places: temperature, statistics and weights
        with torch.no_grad():
            for x in (*agent.modules.buffers(), *agent.modules.parameters()):
                if x.is_floating_point():
                    x.add_(0.1 * x.abs().mean())


def made(module: Any, flags: str) -> tuple[Any, Callable[[], Tensor], Callable[[], Tensor]]:
    """An agent with tiny layers, its gradient on what a few random steps have shown, and how it acts on the last."""
    task = "ClosedFormDiscrete-v0" if module is pqn else "PointMassPrivileged-v0"
    small = "--critic-hidden 16 16 16" + ("" if module is pqn else " --actor-hidden 16 16 16")
    parts = ("critic",) if module is pqn else ("actor", "critic")
    blocks = " ".join(f"--sem-{part}-groups 4 --sem-{part}-vertices 4" for part in parts)
    line = f"--env-id {task} --num-envs 4 --device cpu --eval-every 0 --threads 1 {small} {blocks} {flags}"
    more = (
        "--batch-size 32 --learning-starts 4" if module in (fasttd3, fastsac) else "--num-steps 16 --num-minibatches 2"
    )
    args = module.resolve(parse(module.Args, module.presets, f"{line} {more}".split()).args)
    torch.manual_seed(0)
    if module in (fasttd3, fastsac):
        agent, replay, env, _ = module.build(args, module.join(torch.device("cpu")))
        obs, critic_obs = env.reset()
        replay.start(obs, critic_obs)
        for _ in range(16):
            action = agent.explore(obs)
            step = env.step(action)
            replay.add(action, step)
            obs = step.obs
        return agent, partial(agent.gradient, replay.sample(32)), partial(agent.act, obs)
    env = envs.make(args.env_id, 4)
    agent = module.build(args, module.join(torch.device("cpu")))[0]
    obs, critic_obs = env.reset()
    agent.anneal(0.0)
    rows, steps = [], []
    for _ in range(16):
        rows.append(agent.explore(obs, critic_obs) if module is ppo else agent.explore(obs))
        steps.append(env.step(rows[-1]["action"]))
        obs, critic_obs = steps[-1].obs, steps[-1].critic_obs
    seen = (obs, critic_obs) if module is ppo else (obs,)
    return agent, partial(agent.gradient, agent.estimate(rows, steps)), partial(agent.rehearse, *seen)


def fake(monkeypatch: pytest.MonkeyPatch, calls: list[str], run: Any) -> None:
    """Have torch.compile return what `run` makes of a region."""

    def compiling(region: Any, **_: Any) -> Any:
        def compiled(inputs: Any) -> Any:
            calls.append("compiled")
            return run(region, inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", compiling)
