"""Updates as CUDA graphs: a method of an agent is recorded once, and from then on all its kernels are one launch."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils._pytree import tree_leaves

from agents.ranks import Ranks

Inputs = TensorDict | dict[str, Tensor]
Replay = Callable[[], object]


class Agent(Protocol):
    """What learns."""

    device: torch.device

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training changes; the tensors themselves, no copies."""
        ...


class Recording(NamedTuple):
    """A method with its inputs and outputs in places of their own, which every replay reads and writes."""

    inputs: Inputs
    replay: Replay
    outputs: Any


class Recorded:
    """The method `name` of `agent`, recorded; in its place once `verify` has been content.

    It takes tensors by name, and further arguments that are no tensors: there is a recording for each of their values.
    What it does to the host is done once, when it is recorded; its outputs are overwritten by the next call. It must
    not wait for the device, and all that it reads from one call to the next must stay where it is.

    Small networks at a GPU spend their time in launching kernels, of which an update has a few hundred. Replays draw
    new random numbers each, those that the method itself would draw.
    """

    def __init__(self, agent: Agent, name: str) -> None:
        self._agent, self._name, self._plain = agent, name, getattr(agent, name)
        self._recordings: dict[tuple[Any, ...], Recording] = {}
        self.unverified = True
        """`verify` has not looked yet"""

    def verify(
        self, tolerance: float, make_inputs: Callable[[], Inputs], variants: Sequence[tuple[Any, ...]] = ((),)
    ) -> str:
        """Compare what recordings do to the agent with what the method does; returns a line for users.

        For each of `variants`, further arguments, both start from the same state with the same random numbers, and at
        the end agent and random streams are as they were. Where the changes differ by more than the tolerance, as
        `difference` has it, or where something cannot be recorded here, the method stays.
        """
        self.unverified = False
        begin, apart = time.perf_counter(), [0.0]
        with self._rehearsal():
            inputs = make_inputs()
        for variant in variants:
            plain = self._change(self._plain, inputs, variant)
            try:
                self._recordings[variant] = self._record(inputs, variant)
                replayed = self._change(self._replay, inputs, variant)
            except Exception as error:  # whatever a device says to it; what is wrong without it has been raised above
                self._recordings.clear()
                reason = (str(error).strip().splitlines() or [""])[0]
                return f"not recorded: {type(error).__name__}: {reason}"[:200]
            apart.append(difference(replayed, plain))
            if not apart[-1] <= tolerance:
                self._recordings.clear()
                told = f"{self._name} differs by {apart[-1]:.0e} relative to its change, more than {tolerance:g}"
                return f"not recorded: {told}"
        setattr(self._agent, self._name, self._replay)
        told = f"{time.perf_counter() - begin:.1f} s, {self._name} differs by {max(apart):.0e}"
        return f"recorded in {told} relative to its change"

    def _record(self, inputs: Inputs, variant: tuple[Any, ...]) -> Recording:
        own: dict[int, Any] = {}  # a tensor that has two names stays one
        named = {name: own.setdefault(id(x), x.clone()) for name, x in inputs.items()}
        places = TensorDict(named, inputs.batch_size) if isinstance(inputs, TensorDict) else named
        with self._rehearsal():
            replay, outputs = record(lambda: self._plain(places, *variant), self._agent.device)
        return Recording(places, replay, outputs)

    def _replay(self, inputs: Inputs, *variant: Any) -> Any:
        recording = self._recordings[variant]
        done = set()
        for name, x in inputs.items():
            place: Any = recording.inputs[name]
            if id(place) not in done:
                place.copy_(x)
                done.add(id(place))
        recording.replay()
        return recording.outputs

    def _change(self, method: Callable[..., Any], inputs: Inputs, variant: tuple[Any, ...]) -> list[Tensor]:
        """Return by how much a call changes each tensor of the agent; then they are as they were."""
        with self._rehearsal() as kept:
            method(inputs, *variant)
            return [(x - before).double() for x, before in kept if x.is_floating_point()]

    @contextmanager
    def _rehearsal(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Context of what does not count, with random numbers that are always the same; gives tensors and copies."""
        device = self._agent.device
        kept = [(x, x.clone()) for x in tree_leaves(self._agent.state_dict()) if isinstance(x, Tensor)]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            try:
                yield kept
            finally:
                with torch.no_grad():
                    for x, before in kept:
                        x.copy_(before)


def difference(mine: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the root mean square, over all numbers, of how far tensors differ relative to the norms of the others.

    A number that is large beside all others does not hide them, nor does a small tensor of nothing but noise count.
    """
    square = sum(
        b.numel() * ((a - b).norm() / b.norm().clamp(min=1e-12)).square() for a, b in zip(mine, others, strict=True)
    )
    return float((square / sum(b.numel() for b in others)) ** 0.5)


def record(method: Callable[[], Any], device: torch.device) -> tuple[Replay, Any]:
    """Return what replays the kernels that a method launches, and where its outputs will be."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries and compilers take what they need when they are first called
            method()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may do as they like
            outputs = method()
    return graph.replay, outputs


def can_record(device: torch.device, ranks: Ranks) -> bool:
    """Whether updates can be recorded: on a GPU, by one process, since what several exchange cannot."""
    return device.type == "cuda" and ranks.world == 1
