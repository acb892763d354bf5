"""Episode statistics of training without waiting for the device, and the deterministic evaluation of a policy."""

import math
from collections.abc import Callable, Mapping
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from agents.ranks import ALONE, Ranks
from envs.base import Step, VecEnv

CHECK_EVERY = 32
"""steps between two looks at whether an evaluation is over; each look waits for the device"""

UNLIMITED = 10_000
"""steps after which an evaluation gives up, where the task has no longer time limit"""


def score_and_end(step: Step) -> tuple[Tensor, Tensor]:
    """Return what counts as reward [N] and where the episode is over [N], as the task's users know them.

    That is the reward before it was reshaped, and the end of the game instead of a lost life. The clock's end is always
    an end, and by the contract that covers a row that the simulator has spoilt.
    """
    over = step.metrics.get("game_over", step.terminated)
    return step.metrics.get("raw_reward", step.reward), over | step.truncated


class EpisodeStats:
    """Statistics of the episodes that N environments finish while an agent trains: `add` each step, `summary` at times.

    All sums are float64, on the environments' device. An episode with a row that is not valid is dropped.
    """

    def __init__(self, num_envs: int, device: torch.device | str, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        # of the episode under way: return, length, whether it has ever succeeded, whether at this step
        self._running = torch.zeros(4, num_envs, dtype=torch.float64, device=device)
        # since the last summary: sums of those over finished episodes, episodes, spoilt rows, lowest and highest return
        self._interval = torch.zeros(8, num_envs, dtype=torch.float64, device=device)
        self._reports_success = False
        self._clear()

    @torch.no_grad()
    def add(self, step: Step) -> None:
        """Count one step of all environments.

        Raises:
            ValueError: a number is not finite in a row that says it is valid. Looked for on a CPU only: elsewhere to
                look is to wait.
        """
        running, interval = self._running, self._interval
        score, ended = score_and_end(step)
        if ended.device.type == "cpu":
            _check_finite(step)
        running[0] += score
        running[1] += 1
        if "success" in step.metrics:
            self._reports_success = True
            running[3] = step.metrics["success"]
            torch.maximum(running[2], running[3], out=running[2])
        if ended.device.type == "cpu" and not bool(ended.any()):  # elsewhere to look is to wait
            return
        finished = ended & step.valid
        interval[:4] += torch.where(finished, running, 0)
        interval[4] += finished
        interval[5] += ~step.valid
        torch.minimum(interval[6], torch.where(finished, running[0], inf), out=interval[6])
        torch.maximum(interval[7], torch.where(finished, running[0], -inf), out=interval[7])
        running.masked_fill_(ended, 0)

    def summary(self) -> dict[str, float]:
        """Return the statistics since the last call, by their TensorBoard tags, in one transfer from the device.

        They are those of all processes that train together; all call this.

        `charts/`: `episodes` (finished), and only if that is not 0 their mean `episodic_return`, its `_min` and `_max`,
        mean `episodic_length` in steps, and where the task reports success `success_rate`, the share of episodes that
        succeeded at any step, and `success_end`, at their last one. `health/nonfinite_transitions`: rows that the
        simulator has spoilt, each with its episode.
        """
        sums = self._ranks.sum_(self._interval[:6].sum(1))
        extremes = self._ranks.max_(torch.stack([-self._interval[6].amin(), self._interval[7].amax()]))
        totals = torch.cat([sums, extremes * extremes.new_tensor([-1, 1])])
        returned, length, success, success_end, episodes, spoilt, low, high = totals.tolist()
        self._clear()
        out = {"charts/episodes": episodes, "health/nonfinite_transitions": spoilt}
        if episodes:
            out["charts/episodic_return"] = returned / episodes
            out["charts/episodic_return_min"] = low
            out["charts/episodic_return_max"] = high
            out["charts/episodic_length"] = length / episodes
            if self._reports_success:
                out["charts/success_rate"] = success / episodes
                out["charts/success_end"] = success_end / episodes
        return out

    def _clear(self) -> None:
        self._interval.zero_()
        self._interval[6] = inf
        self._interval[7] = -inf

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to continue, in the middle of episodes too."""
        return {
            "running": self._running.clone(),
            "interval": self._interval.clone(),
            "reports_success": self._reports_success,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: it is of another number of environments.
        """
        saved, own = state["running"].shape[1], self._running.shape[1]
        if saved != own:
            raise ValueError(f"the saved episode statistics are of {saved} environments; it must be {own}")
        self._running.copy_(state["running"])
        self._interval.copy_(state["interval"])
        self._reports_success = state["reports_success"]


def _check_finite(step: Step) -> None:
    """Raise for a number that is not finite in a valid row, which a simulator's adapter must not let through."""
    parts = {"reward": step.reward, "next_obs": step.next_obs}
    if step.next_critic_obs is not step.next_obs:
        parts["next_critic_obs"] = step.next_critic_obs
    if all(math.isfinite(part.sum()) for part in parts.values() if part.is_floating_point()):
        return
    for name, part in parts.items():  # a sum can overflow: look at each
        bad = step.valid & ~part.isfinite().reshape(len(part), -1).all(1)
        if bool(bad.any()):
            env = int(bad.nonzero()[0])
            raise ValueError(
                f"the simulator returned a number that is not finite: {name} of environment {env}; its adapter must "
                "reset the environment and mark the row as not valid, see `valid` in envs/base.py"
            )


@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor], Tensor], env: VecEnv, seed: int, max_steps: int | None = None
) -> dict[str, float]:
    """Return the statistics of the first episode of each environment under `policy`, from obs [N, *obs] to actions.

    One episode each: to take those that finish first would favour short ones. `seed` fixes the episodes. An evaluation
    ends after `max_steps`, by default 10,000 or the task's time limit if that is longer. What is unfinished then counts
    with its return so far, as if that was the time limit.

    Keys: `episodes` that count; their `episodic_return` (mean), `_std` (over episodes; 0 for a single one), `_min` and
    `_max`; mean `episodic_length` in steps; where the task reports success `success_rate`, the share of episodes that
    succeeded at any step, and `success_end`, at their last one; `unfinished`, how many of them are; `nonfinite`, how
    many do not count since the simulator has spoilt them. Means and extremes of no episode at all are NaN. Where there
    are several tasks, `episodic_return/TASK` and `success_rate/TASK` are those of each.

    Raises:
        ValueError: max_steps is not positive.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it must be at least 1, or None")
    limit = max_steps or max(env.max_episode_steps or 0, UNLIMITED)  # a limit of 1 means an unknown one
    obs, _ = env.reset(seed)
    totals = torch.zeros(4, env.num_envs, dtype=torch.float64, device=env.device)  # rows as in EpisodeStats
    done = torch.zeros(env.num_envs, dtype=torch.bool, device=env.device)
    spoilt = done.clone()
    reports_success = False
    for count in range(1, limit + 1):
        step = env.step(policy(obs))
        obs = step.obs
        score, ended = score_and_end(step)
        totals[0] += torch.where(done, 0, score)
        totals[1] += ~done
        if "success" in step.metrics:
            reports_success = True
            success = step.metrics["success"].double()
            totals[2] = torch.where(done, totals[2], totals[2].maximum(success))
            totals[3] = torch.where(done, totals[3], success)
        spoilt |= ~step.valid & ~done
        done |= ended
        if count % CHECK_EVERY == 0 and bool(done.all()):
            break
    result = torch.cat([totals, done[None], spoilt[None]]).cpu()
    returned, length, success_once, success_end, finished, dropped = result
    keep = dropped == 0
    returned = returned[keep]
    out = {
        "episodes": float(keep.sum()),
        "episodic_return": float(returned.mean()),
        "episodic_return_std": float((returned - returned.mean()).square().mean().sqrt()),
        "episodic_return_min": min(returned.tolist(), default=nan),
        "episodic_return_max": max(returned.tolist(), default=nan),
        "episodic_length": float(length[keep].mean()),
        "unfinished": float((finished[keep] == 0).sum()),
        "nonfinite": float(dropped.sum()),
    }
    if reports_success:
        out["success_rate"] = float(success_once[keep].mean())
        out["success_end"] = float(success_end[keep].mean())
    for name, group in env.tasks.items():
        out[f"episodic_return/{name}"] = float(result[0][group][keep[group]].mean())
        if reports_success:
            out[f"success_rate/{name}"] = float(success_once[group][keep[group]].mean())
    return out
