"""agents/recorded.py: updates that are recorded once and replayed are those of plain code, bit for bit.

CUDA graphs need a GPU. Most of what they ask of a program does not: here a recorder in their place keeps every
operation of torch with the very tensors that it had, and replays them. So what goes wrong there goes wrong here too: a
wait for the device while it is recorded, a number of the host that changes later, a tensor that is replaced by another
one. What only a GPU has, its streams, its memory and copies from the host's, is not seen.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import networks.layers
import networks.sem
from agents import fastsac, fasttd3, ppo, recorded
from agents.checkpoint import newest_checkpoint
from agents.ranks import ALONE, Ranks
from agents.recorded import Recorded, can_record
from networks.flat import AdamW, Flat

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "item"}
"""operations whose result the host has to know"""
FROM_HOST = {"lift_fresh"}
"""operations that bring numbers from the host, from memory that is gone when they are replayed"""


class Recorder(TorchDispatchMode):
    """Keeps operations and their tensors, and refuses what a CUDA graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.born: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        masks = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dtype == torch.bool]
        if name in WAITS or (name in ("index", "index_put", "index_put_") and masks and args[1]):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if name in FROM_HOST:
            raise RuntimeError(f"cannot copy from pageable memory when stream is capturing: {name}")
        if func._schema.is_mutable:
            for argument, given in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(given)
            for argument in func._schema.arguments:
                if argument.alias_info is not None and argument.alias_info.is_write and argument.name in kwargs:
                    self._keep(kwargs[argument.name])
        out = func(*args, **kwargs)
        if not func._schema.is_mutable and not any(storage(x) in places(args, kwargs) for x in tensors(out)):
            self.born |= {storage(x) for x in tensors(out)}
        self.operations.append((func, args, kwargs, out))
        return out

    def _keep(self, written: Any) -> None:
        for x in tensors(written):
            if storage(x) not in self.born and storage(x) not in {storage(mine) for mine, _ in self.kept}:
                whole = x.detach().as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
                self.kept.append((whole, whole.clone()))

    @torch.no_grad()
    def undo(self) -> None:
        """Nothing has been computed while it was recorded."""
        for x, before in self.kept:
            x.copy_(before)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            new = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for mine, now in zip(tensors(out), tensors(new), strict=True):
                    if storage(mine) not in places(args, kwargs):  # a view sees what it is a view of
                        mine.copy_(now)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def storage(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def places(args: Any, kwargs: Any) -> set[int]:
    return {storage(x) for x in tensors((args, kwargs))}


def record(method: Callable[[], Any], device: torch.device) -> tuple[Callable[[], object], Any]:
    """In the place of what records on a GPU."""
    method()  # as there, before it is recorded
    state = torch.random.get_rng_state()
    recorder = Recorder()
    try:
        with recorder:
            outputs = method()
    finally:
        recorder.undo()
        torch.random.set_rng_state(state)
    for x in tensors([out for *_, out in recorder.operations]):  # what has not been computed holds anything
        if storage(x) in recorder.born and x.is_floating_point():
            with torch.no_grad():
                x.detach().fill_(float("nan"))
    return recorder.replay, outputs


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record on a CPU, where the compiler leaves everything as it is, and torch does what C++ would."""
    monkeypatch.setattr(recorded, "record", record)
    for module in (networks.sem, networks.layers):  # a call of C++ is no operation of torch
        monkeypatch.setattr(module, "suits", lambda *_: False)

    def compiling(region: Any, **_: Any) -> Any:
        return region

    monkeypatch.setattr(torch, "compile", compiling)


# ---- a small method --------------------------------------------------------------------------------------------------


class Agent:
    """A network that learns to give noise, and counts."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.flat = Flat(self.net.parameters())
        self.optimizer = AdamW(self.flat, 0.1)
        self.loss_sum = torch.zeros(())
        self.factor = 1.0
        self.calls = 0

    def learn(self, batch: Any, twice: bool = False) -> Tensor:
        self.calls += 1
        for _ in range(1 + twice):
            out = self.net(batch["x"]) + batch["y"]
            loss = self.factor * (out + torch.randn_like(out)).square().sum()
            self.flat.differentiate(loss)
            self.optimizer.step()
            self.loss_sum += loss.detach()
        return loss.detach() + 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": [self.loss_sum],
            "calls": 3,
        }


def numbers(agent: Agent) -> list[Tensor]:
    return [x.clone() for x in tensors(agent.state_dict())]


def batches() -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    while True:
        yield {"x": torch.randn(5, 3, generator=generator), "y": torch.randn(5, 2, generator=generator)}


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("kind", [dict, partial(TensorDict, batch_size=[5])])
def test_replays_do_what_the_method_does_with_what_is_there_now(kind: Any) -> None:
    plain, fast = Agent(), Agent()
    found = Recorded(fast, "learn")
    before, state = numbers(fast), torch.random.get_rng_state()
    said = found.verify(1e-6, lambda: kind(next(batches())), [(False,), (True,)])
    assert said.startswith("recorded in ") and said.endswith("learn differs by 0e+00")
    assert not found.unverified and fast.calls == 6  # once plain, once before it is recorded, and once recorded
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, numbers(fast), strict=True))
    losses = []
    for agent in (plain, fast):
        torch.manual_seed(2)
        losses.append([])
        for step, batch in zip(range(20), batches(), strict=False):
            agent.optimizer.lr.fill_(0.1 / (1 + step))  # in its place, so that it is read anew
            losses[-1].append(agent.learn(kind(batch), step % 3 == 0).clone())
    assert fast.calls == 6
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(numbers(plain), numbers(fast), strict=True))
    assert len({float(loss) for loss in losses[1]}) == 20  # replays draw new numbers


@pytest.mark.usefixtures("on_cpu")
def test_a_tensor_with_two_names_stays_one() -> None:
    seen = []

    class Twice(Agent):
        def learn(self, batch: Any, twice: bool = False) -> Tensor:
            seen.append(batch["x"] is batch["z"] and batch["x"] is not batch["y"])
            return super().learn(batch, twice)

    found = Recorded(agent := Twice(), "learn")

    def batch() -> dict[str, Tensor]:
        made = next(batches())
        return {**made, "z": made["x"]}

    assert found.verify(1e-6, batch).startswith("recorded in ")
    agent.learn(batch())
    assert seen == [True] * 3


def waits(agent: Agent, batch: Any) -> None:
    if agent.loss_sum > 1e9:
        agent.factor = 2.0


def waits_for_rows(agent: Agent, batch: Any) -> None:
    agent.loss_sum += batch["x"][batch["x"][:, 0] > 0].sum()


def brings_a_number(agent: Agent, batch: Any) -> None:
    agent.loss_sum += torch.tensor(3.0)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("bad", [waits, waits_for_rows, brings_a_number])
def test_what_cannot_be_recorded_stays_plain(bad: Callable[[Agent, Any], None]) -> None:
    class Bad(Agent):
        def learn(self, batch: Any, twice: bool = False) -> Tensor:
            bad(self, batch)
            return super().learn(batch, twice)

    agent = Bad()
    before, state = numbers(agent), torch.random.get_rng_state()
    said = Recorded(agent, "learn").verify(1e-6, lambda: next(batches()))
    assert said.startswith("not recorded: RuntimeError: ") and "when stream is capturing" in said
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, numbers(agent), strict=True))
    calls = agent.calls
    agent.learn(next(batches()))
    assert agent.calls == calls + 1


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("wrong", [-1.0, 1.01, float("nan")])
def test_what_differs_gives_way(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent()

    def wrongly(method: Callable[[], Any], device: torch.device) -> tuple[Callable[[], object], Any]:
        replay, outputs = record(method, device)

        def other() -> None:
            before = agent.flat.vector.detach().clone()
            replay()
            agent.flat.vector.data.sub_(before).mul_(wrong).add_(before)

        return other, outputs

    monkeypatch.setattr(recorded, "record", wrongly)
    said = Recorded(agent, "learn").verify(1e-3, lambda: next(batches()))
    assert said.startswith("not recorded: learn differs by ") and said.endswith(", more than 0.001")
    calls = agent.calls
    agent.learn(next(batches()))
    assert agent.calls == calls + 1


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("left_behind", ["lr", "outputs"])
def test_one_number_that_is_left_behind_is_seen(left_behind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    many = torch.zeros(100_000)  # numbers that do not change

    class Many(Agent):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "many": many}

    agent = Many()

    def wrongly(method: Callable[[], Any], device: torch.device) -> tuple[Callable[[], object], Any]:
        replay, outputs = record(method, device)

        def other() -> None:
            replay()
            agent.optimizer.lr.mul_(0.9 if left_behind == "lr" else 1.0)
            outputs.mul_(0.9 if left_behind == "outputs" else 1.0)

        return other, outputs

    monkeypatch.setattr(recorded, "record", wrongly)
    said = Recorded(agent, "learn").verify(1e-2, lambda: next(batches()))
    assert said.startswith("not recorded: learn differs by ")


@pytest.mark.usefixtures("on_cpu")
def test_a_name_that_becomes_another_tensor_is_refused() -> None:
    agent = Agent()
    found = Recorded(agent, "learn")

    def batch() -> dict[str, Tensor]:
        made = next(batches())
        return {**made, "z": made["x"]}

    assert found.verify(1e-6, batch).startswith("recorded in ")
    with pytest.raises(AssertionError, match="z was another tensor's second name"):
        agent.learn({**batch(), "z": torch.zeros(5, 3)})


def test_what_it_takes_to_record_is_undone_where_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of CUDA's: whatever happens, stream, garbage collection and checks of synchronisation are as before."""
    state: dict[str, Any] = {"stream": "main", "mode": 0}

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

    main = Stream()

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        before, state["stream"] = state["stream"], stream
        yield
        state["stream"] = before

    @contextmanager
    def graph(made: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert state["mode"] == 0 and not gc.isenabled()
        state["stream"] = stream
        yield  # and if that fails, it stays
        state["stream"] = main

    fakes = {
        "device": lambda device: nullcontext(),
        "current_stream": lambda: main,
        "Stream": Stream,
        "stream": on,
        "graph": graph,
        "CUDAGraph": lambda: SimpleNamespace(replay="replay"),
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: state.update(mode=mode),
        "set_stream": lambda stream: state.update(stream=stream),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    modes: list[Any] = []

    def method(fails_at: int) -> str:
        modes.append(state["mode"])
        if len(modes) == fails_at:
            raise RuntimeError("it waits")
        return "outputs"

    for fails_at in (1, 2, 3):
        modes.clear()
        state["stream"] = main
        if fails_at < 3:
            with pytest.raises(RuntimeError, match="it waits"):
                recorded.record(partial(method, fails_at), torch.device("cuda"))
        else:
            assert recorded.record(partial(method, fails_at), torch.device("cuda")) == ("replay", "outputs")
        assert modes == ["error", 0][:fails_at]
        assert state == {"stream": main, "mode": 0} and gc.isenabled()


@pytest.mark.usefixtures("on_cpu")
def test_a_device_that_does_not_get_over_it_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Offset increment outside graph capture")

    def fails(method: Callable[[], Any], device: torch.device) -> Any:
        monkeypatch.setattr(torch, "rand", refuse)
        try:
            raise RuntimeError("a copy from pageable memory")
        except RuntimeError:
            raise RuntimeError("previous error during capture")  # noqa: B904  # as torch does

    monkeypatch.setattr(recorded, "record", fails)
    with pytest.raises(RuntimeError, match=r"pageable memory; after that .* Offset .* leave --compile away"):
        Recorded(Agent(), "learn").verify(1e-3, lambda: next(batches()))


@pytest.mark.usefixtures("on_cpu")
def test_what_is_wrong_anyway_is_raised() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Recorded(Agent(), "learn").verify(1e-3, lambda: {"x": torch.ones(5, 4), "y": torch.ones(5, 2)})


def test_only_one_process_on_a_gpu_records() -> None:
    assert can_record(torch.device("cuda", 0), ALONE)
    assert not can_record(torch.device("cpu"), ALONE)
    assert not can_record(torch.device("cuda"), Ranks(0, 2, 0))


# ---- the agents ------------------------------------------------------------------------------------------------------

OFF_POLICY = (
    "--batch-size 32 --buffer-size 400 --learning-starts 40 --num-envs 4 --total-timesteps 200 --save-every 200"
)
ON_POLICY = "--num-envs 4 --num-steps 16 --num-minibatches 4 --update-epochs 3 --total-timesteps 320 --save-every 320"
CASES = [
    (fasttd3, "PointMass-v0", f"{OFF_POLICY} --sem --sem-temperature-end 0.3 --reward-norm --max-grad-norm 1"),
    (fasttd3, "PointMassPrivileged-v0", f"{OFF_POLICY} --policy-frequency 1 --clipped-double-q --amp bfloat16"),
    (fasttd3, "PointMass-v0", f"{OFF_POLICY} --torso flashsac --critic-lr-end 1e-5 --symmetry"),
    (fastsac, "PointMass-v0", f"{OFF_POLICY} --sem --sem-learned-temperature --policy-frequency 3"),
    (fastsac, "PointMassPrivileged-v0", f"{OFF_POLICY} --no-autotune --no-distributional --torso simbav2"),
    (ppo, "PointMassPrivileged-v0", f"{ON_POLICY} --sem --lr-schedule adaptive --symmetry"),
    (ppo, "ClosedFormDiscrete-v0", f"{ON_POLICY} --sem --target-kl 0.01 --sem-temperature-end 0.5"),
    (ppo, "Pixels-v0", f"{ON_POLICY} --amp bfloat16 --bottleneck gumbel-st"),
]


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("module", "task", "flags"), CASES)
def test_training_with_recordings_is_training_without(
    module: Any, task: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    small = "--actor-hidden 16 16 --critic-hidden 16 16" + " --sem-actor-groups 4 --sem-actor-vertices 4"
    line = f"--env-id {task} --device cpu --threads 1 --compile --quiet --log-every 80 --eval-every 0 {small} {flags}"
    ends, replays = [], []

    def counted(method: Callable[[], Any], device: torch.device) -> tuple[Callable[[], object], Any]:
        replay, outputs = record(method, device)
        return lambda: replays.append(replay()), outputs

    monkeypatch.setattr(recorded, "record", counted)
    for records in (False, True):
        monkeypatch.setattr(module, "can_record", lambda *_, records=records: records)
        run = tmp_path / str(records)
        assert module.main([*line.split(), "--run-dir", str(run)]) == 0
        ends.append(newest_checkpoint(run)[0])
    assert len(replays) > 10
    for part in ("agent", "loop"):
        plain, fast = (tree_leaves(end.load(part, "cpu")) for end in ends)
        assert len(plain) == len(fast)
        for a, b in zip(plain, fast, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
