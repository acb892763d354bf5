"""Methods of an agent through torch.compile, and whether they still compute what they did before."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.recorded import always_the_same

TOLERANCE = {"off": 1e-3, "bfloat16": 0.1}
"""By how much numbers may differ, by --amp, relative to their norm. A fused kernel does not round between operations:
measured are 1e-6 in float32 and 1e-2 in bfloat16, while a wrong sign or mask is 0.1 to 2."""


class Agent(Protocol):
    """What has networks."""

    device: torch.device
    modules: nn.ModuleDict


class Vector(Protocol):
    """What has the parameters of a network in one vector: `networks.flat.Flat`."""

    vector: nn.Parameter
    leaf: Tensor | None
    parameters: list[Tensor]

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector in the shapes of the parameters."""
        ...


class Compiled:
    """The named methods of `agent`, each compiled into one region; in their places once `verify` has been content.

    A method that takes gradients does so within its region: losses, their derivatives by all layers and the gradient
    [P] become one program, in which a SEM block is a few more terms of loops that are there anyway. To that end the
    networks compute with pieces of their vectors, the `flats`, by which `Flat.gradient` then goes.

    Compiled code draws the random numbers that plain code draws, so that the two can be compared and a run does not
    depend on the compiler's version; it costs a kernel for each draw.
    """

    def __init__(self, agent: Agent, flats: Sequence[Vector], *names: str) -> None:
        import torch._dynamo.config  # here, since a second of start-up is for those who compile
        import torch._inductor.config

        torch._inductor.config.fallback_random = True
        torch._dynamo.config.trace_autograd_ops = True
        self._agent = agent
        self._plain = {name: getattr(agent, name) for name in names}
        self._fast = {name: _region(agent.modules, flats, method) for name, method in self._plain.items()}
        self.unverified = [*names]
        """methods that `verify` has not looked at yet"""

    def _put(self, methods: Mapping[str, Any], names: Iterable[str]) -> None:
        for name in names:
            setattr(self._agent, name, methods[name])

    def verify(self, tolerance: float, check: Callable[[], Tensor], *names: str) -> str:
        """Compute the same numbers with the named methods compiled and plain; returns a line for users.

        Without names it is of all methods that have not been looked at. Both get the same random numbers, and random
        streams are left as they were. Where the results differ by more than the tolerance, relative to their norm, or
        where something cannot be compiled here, plain methods stay.
        """
        from torch._dynamo.utils import counters

        names = names or tuple(self.unverified)
        self.unverified = [name for name in self.unverified if name not in names]
        hits = counters["inductor"]["fxgraph_cache_hit"]
        begin = time.perf_counter()
        self._put(self._fast, names)
        try:
            fast = self._seeded(check)
        except Exception as error:  # whatever the compiler raises; what is wrong without it is raised again below
            self._put(self._plain, names)
            self._seeded(check)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"not compiled: {type(error).__name__}: {reason}"[:200]
        seconds = time.perf_counter() - begin
        warm = counters["inductor"]["fxgraph_cache_hit"] > hits
        self._put(self._plain, names)
        plain = self._seeded(check)
        apart = float((fast - plain).norm() / plain.norm().clamp(min=1e-12))
        told = f"{seconds:.1f} s{' with kernels from the cache' if warm else ''}, {' and '.join(names)} "
        told += f"{'differs' if len(names) == 1 else 'differ'} by {apart:.0e}"
        if not apart <= tolerance:
            return f"not compiled: after {told} relative to the norm, more than {tolerance:g}"
        self._put(self._fast, names)
        return f"compiled in {told} relative to the norm"

    def _seeded(self, check: Callable[[], Tensor]) -> Tensor:
        with always_the_same(self._agent.device):
            return check().clone()


class _Networks(nn.Module):
    """Networks, for `functional_call`, which wants one module that calls whatever computes with them."""

    def __init__(self, networks: nn.ModuleDict) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, method: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        """Return method(*inputs)."""
        return method(*inputs)


def _may_change(name: str) -> bool:
    """Whether what a guard of this name looks at may change from call to call; modes of torch have no name."""
    return not name or name.removeprefix("L['").startswith("inputs")


def _region(networks: nn.ModuleDict, flats: Sequence[Vector], method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that is compiled as a whole, and computes with pieces of the vectors."""
    whole = _Networks(networks)
    name_of = {id(parameter): name for name, parameter in whole.named_parameters()}
    names = [[name_of[id(parameter)] for parameter in flat.parameters] for flat in flats]

    def region(inputs: Sequence[Any]) -> Any:
        parameters: dict[str, Tensor] = {}
        for flat, each in zip(flats, names, strict=True):
            assert flat.leaf is not None
            parameters.update(zip(each, flat.pieces(flat.leaf), strict=True))
        return torch.func.functional_call(whole, parameters, (method, inputs))

    # What is compiled is looked up by code, and told apart by guards on all that it has read, whose check takes a
    # quarter of the time of a small network's region. Nothing changes in an agent but numbers on its device. So only
    # inputs and modes of torch (autocast, gradients) are guarded, and each region is code of its own.
    region.__code__ = region.__code__.replace()
    guarded: dict[str, Any] = {"guard_filter_fn": lambda guards: [_may_change(guard.name) for guard in guards]}
    compiled = torch.compile(region, fullgraph=True, options=guarded)

    def call(*inputs: Any) -> Any:
        for flat in flats:
            flat.leaf = flat.vector.detach().requires_grad_()
        try:
            return compiled([dict(x.items()) if isinstance(x, TensorDict) else x for x in inputs])
        finally:
            for flat in flats:
                flat.leaf = None

    return call
