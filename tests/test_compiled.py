"""What is compiled is held against what is not, and gives way where it differs or where there is no compiler."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.compiled import Compiled

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")


class Agent:
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.weight = torch.linspace(-1, 1, 6).requires_grad_()

    def loss(self, x: Tensor) -> Tensor:
        return ((self.weight * x).tanh() + torch.randn_like(x)).square().sum()

    def gradient(self) -> Tensor:
        return torch.autograd.grad(self.loss(torch.ones(6)), self.weight)[0]


def test_equal_gradients_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fake(monkeypatch, calls, lambda method, x: method(x))
    agent = Agent()
    compiled = Compiled(agent, "loss")
    before = torch.random.get_rng_state()
    said = compiled.verify(agent.gradient, 1e-6)
    assert said.startswith("compiled in ") and said.endswith("gradients differ by 0e+00 of their norm")
    assert torch.equal(torch.random.get_rng_state(), before)
    agent.gradient()
    assert calls == ["compiled", "compiled"]  # in the comparison, and from now on


@pytest.mark.parametrize("wrong", [-1.0, 1.01, float("nan")])
def test_what_differs_gives_way(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    calls: list[str] = []
    fake(monkeypatch, calls, lambda method, x: wrong * method(x))
    agent = Agent()
    said = Compiled(agent, "loss").verify(agent.gradient, 1e-3)
    assert said.startswith("not compiled: after ") and said.endswith("of their norm, more than 0.001")
    agent.gradient()
    assert calls == ["compiled"]


def test_without_a_compiler_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(method: Any, x: Tensor) -> Tensor:
        raise RuntimeError("no g++ here\nand many more lines")

    fake(monkeypatch, [], refuse)
    agent = Agent()
    assert Compiled(agent, "loss").verify(agent.gradient, 1e-3) == "not compiled: RuntimeError: no g++ here"
    assert agent.gradient().shape == (6,)


def test_what_is_wrong_without_a_compiler_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, [], lambda method, x: method(x))
    agent = Agent()
    agent.weight = torch.ones(5).requires_grad_()
    with pytest.raises(RuntimeError, match="size of tensor"):
        Compiled(agent, "loss").verify(agent.gradient, 1e-3)


@needs_compiler
@pytest.mark.slow
def test_compiled_code_draws_what_plain_code_draws_and_new_numbers_each_time() -> None:
    agent = Agent()
    compiled = Compiled(agent, "loss")
    assert compiled.verify(agent.gradient, 1e-5).startswith("compiled in ")
    fast, again = agent.gradient(), agent.gradient()
    assert not torch.equal(fast, again)  # two replays of one graph


def fake(monkeypatch: pytest.MonkeyPatch, calls: list[str], run: Any) -> None:
    """Have torch.compile return what `run` makes of a method."""

    def compiling(method: Any) -> Any:
        def compiled(x: Tensor) -> Tensor:
            calls.append("compiled")
            return run(method, x)

        return compiled

    monkeypatch.setattr(torch, "compile", compiling)
