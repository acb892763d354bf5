"""Methods of an agent through torch.compile, and whether they still compute what they did before."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

TOLERANCE = {"off": 1e-3, "bfloat16": 0.1}
"""By how much gradients may differ, by --amp, relative to their norm. A fused kernel does not round between operations:
measured are 1e-6 in float32 and 1e-2 in bfloat16, while a wrong sign or mask is 0.1 to 2."""


class OnDevice(Protocol):
    """An agent."""

    device: torch.device


class Compiled:
    """The named methods of `agent`, compiled in their places from now on.

    Compiled code draws the random numbers that plain code draws, so that the two can be compared and a run does not
    depend on the compiler's version; it costs a kernel for each draw.
    """

    def __init__(self, agent: OnDevice, *names: str) -> None:
        from torch._inductor import config  # here, since a second of start-up is for those who compile

        config.fallback_random = True
        self.verified = False
        self._agent = agent
        self._plain = {name: getattr(agent, name) for name in names}
        self._fast = {name: torch.compile(method) for name, method in self._plain.items()}
        self._put(self._fast)

    def _put(self, methods: dict[str, Any]) -> None:
        for name, method in methods.items():
            setattr(self._agent, name, method)

    def verify(self, gradients: Callable[[], Tensor], tolerance: float) -> str:
        """Compute the same gradients compiled and plain, from the same random numbers; returns a line for users.

        Where they differ by more than the tolerance, relative to their norm, or where nothing can be compiled here, the
        plain methods are back in their places. Random streams are left as they were.
        """
        from torch._dynamo.utils import counters

        self.verified = True
        hits = counters["inductor"]["fxgraph_cache_hit"]
        begin = time.perf_counter()
        try:
            fast = self._seeded(gradients)
        except Exception as error:  # whatever the compiler raises; what is wrong without it is raised again below
            self._put(self._plain)
            self._seeded(gradients)
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return f"not compiled: {type(error).__name__}: {reason}"[:200]
        seconds = time.perf_counter() - begin
        warm = counters["inductor"]["fxgraph_cache_hit"] > hits
        self._put(self._plain)
        plain = self._seeded(gradients)
        apart = float((fast - plain).norm() / plain.norm().clamp(min=1e-12))
        told = f"{seconds:.1f} s{' with kernels from the cache' if warm else ''}, gradients differ by {apart:.0e}"
        if not apart <= tolerance:
            return f"not compiled: after {told} of their norm, more than {tolerance:g}"
        self._put(self._fast)
        return f"compiled in {told} of their norm"

    def _seeded(self, gradients: Callable[[], Tensor]) -> Tensor:
        device = self._agent.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            return gradients().clone()
