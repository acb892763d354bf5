"""A batch and its mirror images, for tasks with a left-right symmetry. `envs.base.Symmetry` says what the images are.

A learner that sees each transition in both ways needs half as many of them to know what to do on either side, and walks
more evenly. Source: Mittal et al., "Symmetry Considerations for Learning Task Symmetric Robot Policies" (ICRA 2024,
arXiv 2403.04359), where this does better than a loss that asks the policy to be symmetric.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from envs.base import Symmetry, VecEnv


def symmetry_of(env: VecEnv) -> Symmetry:
    """Return the symmetry of a task.

    Raises:
        ValueError: none is known.
    """
    if env.symmetry is None:
        raise ValueError(
            f"--symmetry: no symmetry of {env.task} is known; tell it with envs.wrappers.with_symmetry, as "
            "docs/own-environment.md shows, or leave the flag out"
        )
    return env.symmetry


def with_images(columns: Mapping[str, Tensor], symmetry: Symmetry, dim: int = 0) -> dict[str, Tensor]:
    """Return columns [B, ...] with their mirror images behind them: [2 B, ...]. Columns that are one stay one.

    Observations and actions are known by their names; what else there is (rewards, discounts, advantages) is the same
    in a mirror. `dim` is where the rows are, if it is not in front.
    """
    images = {"action": symmetry.action}
    for prefix in ("", "next_"):
        images |= {f"{prefix}obs": symmetry.obs, f"{prefix}critic_obs": symmetry.critic_obs}
    done: dict[int, Tensor] = {}
    for name, column in columns.items():
        if id(column) not in done:
            image = images[name](column) if name in images else column
            done[id(column)] = torch.cat([column, image], dim)
    return {name: done[id(column)] for name, column in columns.items()}


def asymmetry(act: Callable[[Tensor], Tensor], obs: Tensor, symmetry: Symmetry) -> Tensor:
    """Return how far a policy is from its mirror image, for observations [B, D]: 0 where it is symmetric.

    The mean absolute difference of continuous actions, or the share of discrete ones that differ.
    """
    there, here = act(symmetry.obs(obs)), symmetry.action(act(obs))
    return (there != here).float().mean() if symmetry.action.sign is None else (there - here).abs().mean()
