"""Updates as CUDA graphs: a method of an agent is recorded once, and from then on all its kernels are one launch."""

import gc
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
        the end agent and random streams are as they were. Where changes or outputs differ by more than the tolerance,
        as `difference` has it, or where something cannot be recorded here, the method stays.

        Raises:
            RuntimeError: a recording has failed in a way that the device does not get over.
        """
        self.unverified = False
        begin, apart = time.perf_counter(), [0.0]
        with self._rehearsal():
            inputs = make_inputs()
        for variant in variants:
            plain = self._effect(self._plain, inputs, variant)
            try:
                self._recordings[variant] = self._record(inputs, variant)
                replayed = self._effect(self._replay, inputs, variant)
            except Exception as error:  # whatever a device says to it; what is wrong without it has been raised above
                self._recordings.clear()
                cause = first_cause(error)
                said = f"not recorded: {type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"[:200]
                self._go_on(said)
                return said
            apart.append(difference(replayed, plain))
            if not apart[-1] <= tolerance:
                self._recordings.clear()
                return f"not recorded: {self._name} differs by {apart[-1]:.0e}, more than {tolerance:g}"
        setattr(self._agent, self._name, self._replay)
        return f"recorded in {time.perf_counter() - begin:.1f} s, {self._name} differs by {max(apart):.0e}"

    def _record(self, inputs: Inputs, variant: tuple[Any, ...]) -> Recording:
        own: dict[int, Any] = {}  # a tensor that has two names stays one
        named = {name: own.setdefault(id(x), x.clone()) for name, x in inputs.items()}
        places = TensorDict(named, inputs.batch_size) if isinstance(inputs, TensorDict) else named
        with self._rehearsal():
            replay, outputs = record(lambda: self._plain(places, *variant), self._agent.device)
        return Recording(places, replay, outputs)

    def _replay(self, inputs: Inputs, *variant: Any) -> Any:
        recording = self._recordings[variant]
        done: dict[int, Any] = {}
        for name, x in inputs.items():
            place: Any = recording.inputs[name]
            if id(place) not in done:
                place.copy_(x)
            assert done.setdefault(id(place), x) is x, f"{name} was another tensor's second name when it was recorded"
        recording.replay()
        return recording.outputs

    def _effect(self, method: Callable[..., Any], inputs: Inputs, variant: tuple[Any, ...]) -> list[Tensor]:
        """Return what a call returns, and by how much it changes each tensor of the agent; then they are as before."""
        with self._rehearsal() as kept:
            outputs = [x.double() for x in tree_leaves(method(inputs, *variant)) if isinstance(x, Tensor)]
            return outputs + [(x - before).double() for x, before in kept if x.is_floating_point()]

    @contextmanager
    def _rehearsal(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Context of what does not count, with random numbers that are always the same; gives tensors and copies."""
        kept = [(x, x.clone()) for x in tree_leaves(self._agent.state_dict()) if isinstance(x, Tensor)]
        with always_the_same(self._agent.device):
            try:
                yield kept
            finally:
                with torch.no_grad():
                    for x, before in kept:
                        x.copy_(before)

    def _go_on(self, said: str) -> None:
        """See whether the device still does what it is told.

        Raises:
            RuntimeError: it does not, as can be after a recording that failed.
        """
        try:
            with always_the_same(self._agent.device):
                float(torch.rand((), device=self._agent.device))
        except RuntimeError as error:
            raise RuntimeError(f"{said}; after that the device says {error}: leave --compile away") from error


def first_cause(error: BaseException) -> BaseException:
    """Return the error that others followed from: a recording that has failed is itself no reason."""
    while error.__context__ is not None:
        error = error.__context__
    return error


SINGLE = 8
"""numbers that a tensor has at most for each of them to matter: losses, a learning rate, a temperature"""


def difference(mine: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return how far tensors differ, relative to the norms of the others.

    That is the root mean square over all numbers, or what it is for a tensor of a few numbers, if that is more. So a
    number that is large beside all others does not hide them, nor do many hide a learning rate that has been left
    behind; and a bias whose gradient is nothing but noise counts for as much as it is among the weights.
    """
    apart = [(a - b).norm() / b.norm().clamp(min=1e-12) for a, b in zip(mine, others, strict=True)]
    sizes = [b.numel() for b in others]
    square = sum(size * each.square() for each, size in zip(apart, sizes, strict=True)) / max(sum(sizes), 1)
    few = [each for each, size in zip(apart, sizes, strict=True) if size <= SINGLE]
    return float(torch.stack([torch.as_tensor(square).sqrt(), *(each.to(square) for each in few)]).max())


@contextmanager
def always_the_same(device: torch.device) -> Iterator[None]:
    """Context whose random numbers, on the CPU and on a device, are always the same, and leave no trace."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(0)  # not `torch.manual_seed`, which seeds all other devices, too
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        yield


def record(method: Callable[[], Any], device: torch.device) -> tuple[Replay, Any]:
    """Return what replays the kernels that a method launches, and where its outputs will be."""
    with torch.cuda.device(device):
        before, side, mode = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.get_sync_debug_mode()
        side.wait_stream(before)
        torch.cuda.set_sync_debug_mode("error")  # what waits for the device says so here, and spoils no recording
        try:
            with torch.cuda.stream(side):  # libraries and compilers take what they need when they are first called
                method()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            torch.cuda.set_stream(before)
            before.wait_stream(side)
        graph, collects = torch.cuda.CUDAGraph(), gc.isenabled()
        gc.collect()
        gc.disable()  # what is freed meanwhile may be a graph of somebody else's
        try:
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):  # other threads are free
                outputs = method()
        finally:
            torch.cuda.set_stream(before)  # which torch leaves undone where a recording fails
            if collects:
                gc.enable()
    return graph.replay, outputs


def can_record(device: torch.device, ranks: Ranks) -> bool:
    """Whether updates can be recorded: on a GPU, by one process, since what several exchange cannot."""
    return device.type == "cuda" and ranks.world == 1
