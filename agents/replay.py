"""Replay buffer: every observation is stored once, n-step returns end where they must, sampling never stops the host.

Storage is a ring of S slots (time) by N environments. Slot t holds `obs`, and what `action` led to from there; the
successor of slot t is the `obs` of slot t + 1. The newest slot is open: it has an observation and no action yet. So S
slots hold S - 1 transitions of each environment.

Only a truncated transition has a successor of its own to keep: where an episode has terminated, nothing is bootstrapped
from what follows, and otherwise the next slot has it. Two truncations of an environment are at least L steps apart, so
in each block of L steps there is at most one, and its final observation goes to a row behind the ring which follows
from the number of the block. S - 1 successive steps touch at most F = ceil((S - 2) / L) + 1 blocks: with F rows, none
is written again while its transition lives, and there is nothing to point, count or free.

The ring lives beside the learner, in main memory, or in a file: the last two let a buffer be larger than a GPU, or than
the machine, and batches still arrive on the learner's device.

A transition is known by its serial number `step * N + env`, counted from the first one ever. The place of its slot
(serial mod S * N), of its successor and of its final observation are arithmetic on it.
"""

import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Mapping
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from envs.base import Box, Discrete, Step

EMPTY, GOING, TRUNCATED, TERMINATED = range(4)
"""What a slot says of its transition. EMPTY is one that must not be sampled or run through: the open slot, a row that a
simulator has spoilt, a seam between two streams."""

REDRAWS = 3
"""How often a draw that hits an empty slot is replaced."""

Plan = dict[str, tuple[tuple[int, ...], torch.dtype]]


def plan(
    num_envs: int,
    slots: int,
    obs_space: Box,
    critic_obs_space: Box,
    action_space: Box | Discrete,
    max_episode_steps: int | None,
    obs_dtype: torch.dtype | None = None,
) -> Plan:
    """Return shape and dtype of each tensor that a buffer allocates; arguments are those of `ReplayBuffer`."""
    for name, value, least in (
        ("num_envs", num_envs, 1),
        ("slots", slots, 2),
        ("max_episode_steps", max_episode_steps, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if obs_dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"obs_dtype is {obs_dtype}; it must be torch.float32 or torch.bfloat16")
    finals = 0 if max_episode_steps is None else ceil((slots - 2) / max_episode_steps) + 1

    def observations(space: Box) -> tuple[tuple[int, ...], torch.dtype]:
        dtype = torch.uint8 if space.dtype == "uint8" else obs_dtype or torch.float32
        return (slots + finals, num_envs, *space.shape), dtype

    action = ((), torch.int64) if isinstance(action_space, Discrete) else (action_space.shape, torch.float32)
    tensors: Plan = {
        "obs": observations(obs_space),
        "action": ((slots, num_envs, *action[0]), action[1]),
        "reward": ((slots, num_envs), torch.float32),
        "outcome": ((slots, num_envs), torch.uint8),
    }
    if critic_obs_space != obs_space:
        tensors["critic_obs"] = observations(critic_obs_space)
    return tensors


def predicted_bytes(tensors: Plan) -> int:
    """Return the bytes that a plan takes, without allocating them."""
    return sum(prod(shape) * dtype.itemsize for shape, dtype in tensors.values())


def free_bytes(device: torch.device) -> int:
    """Return the memory that an allocation on `device` can count on: of the GPU, or of the machine or cgroup."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free, *_cgroup_bytes()])


def _cgroup_bytes(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what each memory limit of a container or batch job leaves free; empty where there is none (cgroup v2)."""
    if not proc.exists():
        return []
    group = next((line[3:] for line in proc.read_text().splitlines() if line.startswith("0::")), "/")
    path = root / group.strip("/")
    free = []
    for folder in (path, *path.parents[: len(path.parts) - len(root.parts)]):  # a limit binds all groups below it
        limit, current, stat = (folder / f"memory.{name}" for name in ("max", "current", "stat"))
        if limit.exists() and (text := limit.read_text().strip()) != "max":
            pages = next(int(x.split()[1]) for x in stat.read_text().splitlines() if x.startswith("inactive_file "))
            free.append(int(text) - int(current.read_text()) + pages)  # file cache gives way
    return free


def allocate(tensors: Plan, device: torch.device, folder: Path | None = None) -> dict[str, Tensor]:
    """Return the tensors of a plan, all zero, on `device` or in a file in `folder`.

    The file has no name, so it is gone with the process, however that ends. The disk gives its room at once: what it
    refused later would be no exception but the end of the process.

    Raises:
        ValueError: the folder takes no such file.
    """
    if folder is None:
        return {key: torch.zeros(shape, dtype=dtype, device=device) for key, (shape, dtype) in tensors.items()}
    sizes = [-(-prod(shape) * dtype.itemsize // 64) * 64 for shape, dtype in tensors.values()]  # each begins aligned
    try:
        with TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # not on a Mac
                os.posix_fallocate(file.fileno(), 0, sum(sizes))
            room = torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(sum(sizes),)))
    except OSError as error:
        raise ValueError(f"no replay buffer in {folder}: {error.strerror or error}") from error
    parts = zip(tensors.items(), room.split(sizes), strict=True)
    return {key: x[: prod(shape) * dtype.itemsize].view(dtype).view(shape) for (key, (shape, dtype)), x in parts}


class ReplayBuffer:
    """Transitions of N environments as a learner wants them: `start`, then `add` after every step, `sample` any time.

    `num_envs` is N, `slots` S. The spaces, and `max_episode_steps` (L), are those of the `VecEnv`. `obs_dtype` is the
    precision of stored observations, torch.bfloat16 for half the memory; images stay uint8. `storage` says where all is
    kept: on the "device" that batches are wanted on, in main memory, "host", or in a file in the folder of that name.
    `seed` starts the buffer's own random stream on the device that keeps it; no other one is touched. `say` is told the
    size before the memory is taken.

    Raises:
        ValueError: an argument out of range; no such folder; or the buffer does not fit into what is free there.
    """

    def __init__(
        self,
        num_envs: int,
        slots: int,
        obs_space: Box,
        critic_obs_space: Box,
        action_space: Box | Discrete,
        device: torch.device | str,
        *,
        max_episode_steps: int | None,
        n_step: int = 1,
        gamma: float = 0.99,
        obs_dtype: torch.dtype | None = None,
        storage: str = "device",
        seed: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        folder = None if storage in ("device", "host") else Path(storage)
        if folder is not None and not folder.is_dir():
            raise ValueError(
                f"--replay-storage {storage}: must be device, host, or a folder, and there is no such folder"
            )
        self.learner = torch.empty(0, device=device).device  # with its index, as tensors have it
        """where batches go"""
        self.device = self.learner if storage == "device" else torch.device("cpu")
        """where transitions are kept"""
        self.num_envs, self.slots, self.max_episode_steps = num_envs, slots, max_episode_steps
        self.n_step, self.gamma = n_step, gamma

        def tensors_of(slots: int, obs_dtype: torch.dtype | None = obs_dtype) -> Plan:
            return plan(num_envs, slots, obs_space, critic_obs_space, action_space, max_episode_steps, obs_dtype)

        tensors = tensors_of(slots)
        if not 1 <= n_step < slots:
            raise ValueError(f"n_step is {n_step}; with {slots} slots it must be from 1 to {slots - 1}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}; it must be from 0 to 1")
        needed = predicted_bytes(tensors)
        free, where = free_bytes(self.device), str(self.device)
        if folder is not None:
            free, where = shutil.disk_usage(folder).free, f"the disk of {folder}"
        if needed > free:
            fit = bisect_right(range(2, slots), free, key=lambda s: predicted_bytes(tensors_of(s)))  # slots - 1
            advice = [f"--buffer-size {fit * num_envs} fits" if fit else "take fewer --num-envs"]
            half = predicted_bytes(tensors_of(slots, torch.bfloat16))
            if half < needed and half <= free:
                advice.append(f"--replay-dtype bfloat16 needs {half / 2**30:.2f} GiB")
            raise ValueError(
                f"the replay buffer needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free on {where}: "
                + ", or ".join(advice)
            )
        if say is not None:
            say(f"replay buffer of {(slots - 1) * num_envs:,} transitions: {needed / 2**20:,.0f} MiB on {where}")
        self.storage = TensorDict(allocate(tensors, self.device, folder))
        self.privileged = "critic_obs" in tensors
        self.finals = tensors["obs"][0][0] - slots  # F
        # views of the same memory: row = slot * N + env
        self._flat: dict[str, Tensor] = {key: x.flatten(0, 1) for key, x in self.storage.items()}
        self._step = 0  # steps since the first, and the number of the open one
        self._stream: int | None = None  # step at which the stream of observations began
        self._newest = torch.zeros((), dtype=torch.int64, device=self.device)  # serial of the last valid transition
        self._envs = torch.arange(num_envs, device=self.device)
        self._ahead = torch.arange(n_step, device=self.device)[:, None] * num_envs  # serials from a start onwards
        self._powers = torch.tensor([gamma**k for k in range(n_step + 1)], dtype=torch.float32, device=self.device)
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def __len__(self) -> int:
        """Transitions in the ring. The few that are empty count too: only the device knows about them."""
        return min(self._step, self.slots - 1) * self.num_envs

    @property
    def bytes_per_transition(self) -> float:
        """Allocated bytes, over the transitions that a full buffer holds."""
        return self.storage.bytes() / ((self.slots - 1) * self.num_envs)

    # ---- writing ----

    @torch.no_grad()
    def start(self, obs: Tensor, critic_obs: Tensor) -> None:
        """Begin with the observations of `VecEnv.reset`; or anew, where the simulator could not be continued.

        What is stored stays. The open slot has the successor of the last transitions, so it is left behind, empty, and
        stops n-step windows as the write head does.
        """
        if self._stream is not None and self._step > self._stream:
            self._step += 1
        self._stream = self._step
        self._open(obs.to(self.device), critic_obs.to(self.device))

    @torch.no_grad()
    def add(self, action: Tensor, step: Step) -> None:
        """Store what `action`, [N, A] float32 or [N] int64, led to from the observations given last.

        Raises:
            ValueError: before `start`, or the action's shape is not [N, *action_space.shape].
        """
        if self._stream is None:
            raise ValueError("the replay buffer has no observation yet: call start(obs, critic_obs) after a reset")
        data, slot = self.storage, self._step % self.slots
        if action.shape != data["action"].shape[1:]:  # copy_ would broadcast
            raise ValueError(f"action has shape {list(action.shape)}; it must be {list(data['action'].shape[1:])}")
        if step.reward.device != self.device:
            # from the GPU a copy that does not block may be read too early
            moved = [x.to(self.device, non_blocking=self.device.type != "cpu") for x in step[:-1]]
            step = Step._make([*moved, step.metrics])
        truncated = step.truncated
        # no time limit, no place for final observations: a truncation all the same has no successor, and is dropped
        valid = step.valid if self.finals else step.valid & ~truncated
        data["action"][slot].copy_(action)
        data["reward"][slot].copy_(step.reward)
        outcome = truncated.byte().add_(step.terminated, alpha=2).add_(GOING)  # both is TERMINATED or more
        data["outcome"][slot].copy_(outcome.mul_(valid))
        self._newest = torch.where(valid, self._envs + self._step * self.num_envs, self._newest).amax()
        if self.max_episode_steps is not None and self._any(final := truncated & valid):
            row = self.slots + self._step // self.max_episode_steps % self.finals
            self._write_final("obs", row, step.next_obs, final)
            if self.privileged:
                self._write_final("critic_obs", row, step.next_critic_obs, final)
        self._step += 1
        self._open(step.obs, step.critic_obs)

    def _open(self, obs: Tensor, critic_obs: Tensor) -> None:
        """Make the slot of this step the open one."""
        slot = self._step % self.slots
        self.storage["obs"][slot].copy_(obs)
        if self.privileged:
            self.storage["critic_obs"][slot].copy_(critic_obs)
        self.storage["outcome"][slot].zero_()

    def _write_final(self, key: str, row: int, next_obs: Tensor, final: Tensor) -> None:
        kept = self.storage[key][row]
        kept.copy_(torch.where(final.view(-1, *[1] * (kept.ndim - 1)), next_obs, kept))

    def _any(self, mask: Tensor) -> bool:
        """Whether any is set. On an accelerator True without looking: to look is to wait for all work under way."""
        return self.device.type != "cpu" or bool(mask.any())

    # ---- reading ----

    @torch.no_grad()
    def sample(self, batch_size: int) -> TensorDict:
        """Return [B] transitions, drawn evenly with replacement from the valid ones, all on the learner's device.

        Keys: `obs` and `next_obs` [B, *obs], `critic_obs` and `next_critic_obs` [B, *critic_obs] (the very same tensors
        where nothing is privileged), float32 or uint8; `action` [B, *action]; `reward` [B] float32, the sum of gamma^i
        r_i over the k steps taken; `discount` [B] float32, gamma^k, or 0 where the last of them terminated. `next_obs`
        is the true successor of the last step taken. A window takes n steps, fewer where an episode ends, where a row
        is empty, and at the write head.

        Raises:
            ValueError: nothing was added yet.
        """
        return self.gather(self.draw(batch_size))

    def draw(self, batch_size: int) -> Tensor:
        """Return the serials [B] of valid transitions, each as likely as any other.

        Draws among all that live; one that hits an empty slot, which a share e of them is, is replaced by one of three
        further draws, and last by the newest valid transition. All but the last resort are exactly even, and it is used
        with probability e^4: for the one spoilt row in 1,000 of a bad simulator, once in 10^12.
        """
        if self._step == 0:
            raise ValueError("the replay buffer is empty: add a step before sampling")
        serial, valid = self._draw(1, batch_size)
        if not self._any(~valid):
            return serial[0]
        chosen = self._newest
        for spare, usable in zip(*self._draw(REDRAWS, batch_size), strict=True):
            chosen = torch.where(usable, spare, chosen)
        return torch.where(valid[0], serial[0], chosen)

    def _draw(self, rounds: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return random serials [rounds, B] of what lives, and whether they are valid."""
        serial = torch.randint(
            max(0, self._step - self.slots + 1) * self.num_envs,
            self._step * self.num_envs,
            (rounds, batch_size),
            generator=self._generator,
            device=self.device,
        )
        return serial, self._take("outcome", self._place(serial)) > EMPTY

    @torch.no_grad()
    def gather(self, serial: Tensor) -> TensorDict:
        """Return what `sample` does, for the valid transitions with these serials [B]."""
        place = self._place(serial)
        last, reward, discount, truncated = self._one_step(serial, place) if self.n_step == 1 else self._window(serial)
        after = self._successor(last, truncated)
        batch = {
            "obs": self._read("obs", place),
            "action": self._read("action", place),
            "reward": self._deliver(reward),
            "discount": self._deliver(discount),
            "next_obs": self._read("obs", after),
        }
        if self.privileged:
            batch |= {
                "critic_obs": self._read("critic_obs", place),
                "next_critic_obs": self._read("critic_obs", after),
            }
        else:
            batch |= {"critic_obs": batch["obs"], "next_critic_obs": batch["next_obs"]}
        return TensorDict(batch, batch_size=[len(serial)])

    def _one_step(self, serial: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `_window` does, where n is 1; `place` is that of the serials."""
        outcome = self._take("outcome", place)
        discount = (outcome < TERMINATED).float().mul_(self.gamma)
        return serial, self._take("reward", place), discount, outcome == TRUNCATED

    def _window(self, serial: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return, for windows from `serial` [B] on, the last serial, reward, discount, and whether it was truncated."""
        place = self._place(serial + self._ahead)  # [n, B]
        outcome = self._take("outcome", place)
        goes_on = outcome > EMPTY
        goes_on[1:] &= outcome[:-1] == GOING
        goes_on[0] = True
        taken = goes_on.cumprod(0)  # 1 for every step up to the last one
        count = taken.sum(0)  # k
        reward = torch.where(taken > 0, self._take("reward", place), 0) * self._powers[:-1, None]
        end = outcome.gather(0, count[None] - 1)[0]
        discount = self._powers.index_select(0, count).mul_(end < TERMINATED)
        return serial + (count - 1) * self.num_envs, reward.sum(0), discount, end == TRUNCATED

    def _successor(self, serial: Tensor, truncated: Tensor) -> Tensor:
        """Return the rows [B] of the flattened observations with the true successors of transitions."""
        following = self._place(serial + self.num_envs)
        if self.max_episode_steps is None or not self._any(truncated):
            return following
        row = self.slots + serial // (self.num_envs * self.max_episode_steps) % self.finals
        return torch.where(truncated, row * self.num_envs + serial % self.num_envs, following)

    def _place(self, serial: Tensor) -> Tensor:
        """Return the rows of the flattened ring."""
        return serial % (self.slots * self.num_envs)

    def _take(self, key: str, place: Tensor) -> Tensor:
        """Return the rows `place` of one tensor, [*place, ...], where they are kept."""
        rows = self._flat[key].index_select(0, place.flatten())
        return rows.view(*place.shape, *rows.shape[1:])

    def _read(self, key: str, place: Tensor) -> Tensor:
        """Return the rows `place` [B] of one tensor, [B, ...], as learners want them: beside them, and no bfloat16."""
        source, rows = self._flat[key], None
        if self.device != self.learner:  # gathered where a copy to the device need not wait
            rows = torch.empty(len(place), *source.shape[1:], dtype=source.dtype, pin_memory=True)
        found = torch.index_select(source, 0, place, out=rows).to(self.learner, non_blocking=True)
        return found.float() if found.dtype == torch.bfloat16 else found

    def _deliver(self, x: Tensor) -> Tensor:
        """Return a tensor on the learner's device."""
        return x if self.device == self.learner else x.pin_memory().to(self.learner, non_blocking=True)

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Any]:
        """Return a copy, in main memory, of what has been written so far, and of the random stream."""
        slots = min(self._step + 1, self.slots)
        blocks = 0 if self.max_episode_steps is None else min(self._step // self.max_episode_steps + 1, self.finals)
        begin, end = (row * self.num_envs for row in (self.slots, self.slots + blocks))
        return {
            "layout": self._layout(),
            "step": self._step,
            "stream": self._stream,
            "newest": int(self._newest),
            "generator": self._generator.get_state(),
            "ring": {key: x[: slots * self.num_envs].to("cpu", copy=True) for key, x in self._flat.items()},
            "finals": {key: x[begin:end].to("cpu", copy=True) for key, x in self._flat.items() if "obs" in key},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly from `state_dict`; where the simulator could not be continued, call `start` next.

        Raises:
            ValueError: the state is of a buffer of another shape, precision, time limit or kind of device.
        """
        saved, own = state["layout"], self._layout()
        differing = [
            f"{key} is {saved.get(key, 'absent')} there and {own.get(key, 'absent')} here"
            for key in saved | own
            if saved.get(key, "absent") != own.get(key, "absent")
        ]
        if differing:
            raise ValueError(f"the saved replay buffer does not fit this one: {', '.join(differing)}")
        for begin, tensors in ((0, state["ring"]), (self.slots * self.num_envs, state["finals"])):
            for key, rows in tensors.items():
                self._flat[key][begin : begin + len(rows)].copy_(rows)
        self._step, self._stream = state["step"], state["stream"]
        self._newest.fill_(state["newest"])
        self._generator.set_state(state["generator"].cpu())

    def _layout(self) -> dict[str, Any]:
        """Return what two buffers must share for one to take the state of the other, as plain values."""
        layout = {key: f"{list(x.shape[2:])} {x.dtype}".replace("torch.", "") for key, x in self.storage.items()}
        return {
            "num_envs": self.num_envs,
            "slots": self.slots,
            "max_episode_steps": self.max_episode_steps,
            "device": self.device.type,
            **layout,
        }
