"""An agent without its optimisations, to see whether they change what it learns.

    python benchmarks/plain.py fasttd3 --sem --env-id WalkerWalk-v1 --exp-name plain --seed 1

Trains as `python agents/fasttd3.py` with the same flags does, in float32, with each part of `benchmarks/parts.py` that
touches a number replaced by what one would write first: critics that are networks of their own, torch's optimisers
parameter by parameter, an environment that steps while the learner waits, the losses of PPO by autograd. What both
learn is compared in docs/fasttd3.md.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from agents import config
from benchmarks.parts import PARTS, TASKS

KEPT = ("memory", "one thread", "all threads")
"""parts that touch no number"""


def main(argv: Sequence[str] | None = None) -> int:
    """Train; the first word is the agent, the rest is its command line."""
    name, *flags = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    agents = sorted({task.agent for task in TASKS.values()})
    if name not in agents:
        config.fail(f"{name!r}: name the agent first, {' or '.join(agents)}")
    agent = import_module(f"agents.{name}")
    for what, part in PARTS.items():
        if part.off is not None and what not in KEPT and any(TASKS[task].agent == name for task in part.tasks):
            part.off(agent, setattr)
    for kind in vars(agent).values():  # pictures and rows of diagnostics look into what has been replaced
        if isinstance(kind, type) and kind.__module__ == agent.__name__ and hasattr(kind, "draw"):
            kind.draw = lambda *_: {}
    fixed = [] if "--resume" in flags else ["--amp", "off", "--log-every", "0"]
    return int(agent.main([*flags, *fixed]))


if __name__ == "__main__":
    config.program(main)
