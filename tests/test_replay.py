"""The replay buffer against lists: every start, window, end, lap of the ring and seam between streams."""

import errno
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode

from agents import replay
from agents.replay import ReplayBuffer, plan, predicted_bytes
from envs.base import Step, vector_space

GAMMA = 0.5  # with small whole rewards every sum is exact in float32
ACTION = Box(-1, 1, (2,), np.float32)


class History:
    """A buffer, and beside it all that was ever put in, as lists. Every observation is [env, unique number]."""

    def __init__(self, num_envs: int, slots: int, *, seed: int = 0, privileged: bool = False, **options: Any) -> None:
        self.num_envs, self.slots, self.n_step = num_envs, slots, options.get("n_step", 1)
        spaces = vector_space(2), vector_space(3 if privileged else 2)
        options = {"max_episode_steps": 5, "gamma": GAMMA, **options}
        self.buffer = ReplayBuffer(num_envs, slots, *spaces, ACTION, "cpu", seed=seed, **options)
        self.privileged = privileged
        self.rows: list[list[dict[str, Any]] | None] = []  # [step][env]; None is a seam
        self.counter = 0
        self.obs: torch.Tensor
        self.start()

    def fresh(self) -> torch.Tensor:
        self.counter += 1
        return torch.tensor([[env, self.counter] for env in range(self.num_envs)], dtype=torch.float32)

    def critic(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.cat([obs, -obs[:, 1:]], 1) if self.privileged else obs

    def start(self) -> None:
        if self.rows and self.rows[-1] is not None:
            self.rows.append(None)
        self.obs = self.fresh()
        self.buffer.start(self.obs, self.critic(self.obs))

    def add(self, outcomes: list[str]) -> None:
        """Outcomes are, for each environment, one of: going, terminated, truncated, spoilt."""
        after, successor = self.fresh(), self.fresh()
        mask = {name: torch.tensor([x == name for x in outcomes]) for name in ("terminated", "truncated", "spoilt")}
        ended = mask["terminated"] | mask["truncated"]
        next_obs = torch.where(ended[:, None], successor, after)
        next_obs = torch.where(mask["spoilt"][:, None], self.obs, next_obs)
        action = successor / 2
        reward = successor @ torch.tensor([3.0, 5.0]) % 7 - 3
        reward[mask["spoilt"]] = 0
        self.buffer.add(
            action,
            Step(
                after,
                self.critic(after),
                reward,
                mask["terminated"],
                mask["truncated"] | mask["spoilt"],
                next_obs,
                self.critic(next_obs),
                ~mask["spoilt"],
            ),
        )
        self.rows.append(
            [
                {"obs": self.obs[i], "action": action[i], "reward": float(reward[i]), "next_obs": next_obs[i], "is": x}
                for i, x in enumerate(outcomes)
            ]
        )
        self.obs = after

    def live(self) -> list[tuple[int, int]]:
        """(step, env) of every transition that may be sampled."""
        last = len(self.rows)
        return [
            (step, env)
            for step in range(max(0, last - self.slots + 1), last)
            for env in range(self.num_envs)
            if (row := self.rows[step]) is not None and row[env]["is"] != "spoilt"
        ]

    def expected(self, start: int, env: int) -> dict[str, Any]:
        reward, discount = 0.0, 1.0
        for step in range(start, start + self.n_step):
            row = self.rows[step] if step < len(self.rows) else None
            if row is None or row[env]["is"] == "spoilt":
                break
            last = row[env]
            reward, discount = reward + discount * last["reward"], discount * GAMMA
            if last["is"] != "going":
                break
        first = self.rows[start]
        assert first is not None
        ended = last["is"] == "terminated"
        return {**first[env], "reward": reward, "discount": 0.0 if ended else discount, "next_obs": last["next_obs"]}

    def check(self) -> None:
        """Compare every transition that lives with the lists, and what is drawn with what lives."""
        live = self.live()
        if not live:
            return
        batch = self.buffer.gather(torch.tensor([step * self.num_envs + env for step, env in live]))
        rows = [self.expected(*key) for key in live]
        for key in ("obs", "action", "reward", "discount"):
            want = torch.stack([torch.as_tensor(row[key], dtype=torch.float32) for row in rows])
            torch.testing.assert_close(batch[key], want, rtol=0, atol=0)
        goes_on = batch["discount"] > 0  # else next_obs is not used, and only has to be finite
        next_obs = torch.stack([row["next_obs"] for row in rows])
        torch.testing.assert_close(batch["next_obs"][goes_on], next_obs[goes_on], rtol=0, atol=0)
        assert bool(batch["next_obs"].isfinite().all())
        for key in ("obs", "next_obs"):
            critic_key = key.replace("obs", "critic_obs")
            torch.testing.assert_close(batch[critic_key], self.critic(batch[key]), rtol=0, atol=0)
        drawn = self.buffer.draw(17)
        assert {divmod(int(x), self.num_envs) for x in drawn} <= set(live)


def step_of(obs: torch.Tensor, **changes: Any) -> Step:
    """A step in which nothing ended, except for the changes."""
    off = torch.zeros(len(obs), dtype=torch.bool)
    return Step(obs, obs, torch.zeros(len(obs)), off, off, obs, obs, ~off)._replace(**changes)


OUTCOME = st.sampled_from(["going"] * 5 + ["terminated", "truncated", "truncated", "spoilt"])


@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    num_envs=st.integers(1, 3),
    slots=st.integers(2, 12),
    n_step=st.integers(1, 5),
    limit=st.sampled_from([None, 1, 2, 3, 4, 5, 7, 100]),
    privileged=st.booleans(),
    looks=st.booleans(),
)
def test_every_transition_is_as_in_the_lists(
    data: st.DataObject, num_envs: int, slots: int, n_step: int, limit: int | None, privileged: bool, looks: bool
) -> None:
    n_step = min(n_step, slots - 1)
    history = History(num_envs, slots, n_step=n_step, max_episode_steps=limit, privileged=privileged)
    if not looks:  # as on an accelerator
        history.buffer._any = lambda mask: True  # type: ignore[method-assign]
    truncated_at = [-100.0] * num_envs
    for now in range(data.draw(st.integers(1, 3 * slots))):
        if data.draw(st.integers(0, 9)) == 0:
            history.start()
        outcomes = data.draw(st.lists(OUTCOME, min_size=num_envs, max_size=num_envs))
        for env, outcome in enumerate(outcomes):
            if outcome == "truncated":
                if limit is None or now - truncated_at[env] < limit:  # the contract's promise
                    outcomes[env] = "going"
                else:
                    truncated_at[env] = now
        history.add(outcomes)
        history.check()


def test_rows_for_final_observations_are_as_few_as_possible() -> None:
    space = vector_space(1)
    for slots in range(2, 40):
        for limit in (1, 2, 3, 5, 8, 13, 40, 100):
            touched = max(len({step // limit for step in range(first, first + slots - 1)}) for first in range(limit))
            assert plan(1, slots, space, space, ACTION, limit)["obs"][0][0] - slots == touched


def test_no_rows_for_final_observations_without_a_time_limit() -> None:
    space = vector_space(1)
    assert plan(3, 9, space, space, ACTION, None)["obs"][0] == (9, 3, 1)


def test_window_stops_at_the_write_head_of_a_full_ring() -> None:
    # 4 slots hold 3 transitions, of steps 4, 5, 6; the slot after that of step 6 is open, then comes step 4 again
    history = History(1, 4, n_step=3)
    for _ in range(7):
        history.add(["going"])
    rows = [row[0] for row in history.rows if row is not None]
    r4, r5, r6 = (row["reward"] for row in rows[4:])
    batch = history.buffer.gather(torch.tensor([4, 5, 6]))
    assert batch["reward"].tolist() == [r4 + r5 / 2 + r6 / 4, r5 + r6 / 2, r6]
    assert batch["discount"].tolist() == [1 / 8, 1 / 4, 1 / 2]
    assert batch["next_obs"].tolist() == [rows[6]["next_obs"].tolist()] * 3


def test_final_observations_outlive_their_transition() -> None:
    """Truncations as dense as the promise allows, at another phase in each environment, over many laps."""
    limit, num_envs = 4, 4
    for slots in range(2, 15):
        history = History(num_envs, slots, max_episode_steps=limit)
        for now in range(5 * slots):
            history.add(["truncated" if now % limit == env else "going" for env in range(num_envs)])
            history.check()


def test_spoilt_rows_do_not_overwrite_final_observations() -> None:
    history = History(1, 12, max_episode_steps=10)
    history.add(["truncated"])
    for _ in range(5):  # in the same block of 10 steps, and truncated as well, as the contract says
        history.add(["spoilt"])
    history.check()


def test_a_truncation_without_time_limit_is_dropped() -> None:
    history = History(2, 8, max_episode_steps=None)
    history.add(["going", "truncated"])
    history.add(["going", "going"])
    assert set(history.buffer.draw(200).tolist()) == {0, 2, 3}


def test_start_before_the_first_step_leaves_no_gap() -> None:
    history = History(2, 8)
    history.start()
    history.add(["going", "going"])
    assert len(history.buffer) == 2
    history.check()


def test_discounts_of_gamma_are_float32_exact() -> None:
    history = History(1, 9, n_step=3, gamma=0.997)
    for _ in range(5):
        history.add(["going"])
    batch = history.buffer.gather(torch.arange(5))
    assert batch["discount"].tolist() == [float(np.float32(0.997**k)) for k in (3, 3, 3, 2, 1)]
    assert batch["reward"].dtype == batch["discount"].dtype == torch.float32


# ---- sampling ----


def test_draws_are_even_over_what_is_valid() -> None:
    """Chi-squared over a lapped ring with a seam and spoilt rows, 6% in all."""
    history = History(3, 40)
    for now in range(100):
        if now == 80:
            history.start()
        history.add(["spoilt" if env == 1 and now % 11 == 0 else "going" for env in range(3)])
    live = [step * 3 + env for step, env in history.live()]
    drawn = history.buffer.draw(200_000)
    counts = torch.bincount(drawn - min(live), minlength=max(live) - min(live) + 1)[torch.tensor(live) - min(live)]
    assert int(counts.sum()) == len(drawn)
    assert chisquare(counts.numpy()).pvalue > 1e-4
    pairs = drawn[0::2] % 3 * 3 + drawn[1::2] % 3  # neighbours in a batch are independent
    table = torch.bincount(pairs, minlength=9).view(3, 3).double()
    share = table.sum(1) / table.sum()
    assert chisquare(table.flatten(), (share[:, None] * share * table.sum()).flatten(), ddof=4).pvalue > 1e-4


def test_the_one_valid_transition_is_found_among_many() -> None:
    history = History(4, 300)
    for now in range(290):
        history.add(["going" if (now, env) == (137, 2) else "spoilt" for env in range(4)])
    assert set(history.buffer.draw(50).tolist()) == {137 * 4 + 2}


def test_batch_keys_sizes_and_types() -> None:
    history = History(3, 20)
    for _ in range(30):
        history.add(["going"] * 3)
    for size in (1, 7, 256, 1001):
        batch = history.buffer.sample(size)
        assert isinstance(batch, TensorDict) and batch.batch_size == torch.Size([size])
        assert {key: (tuple(x.shape), x.dtype) for key, x in batch.items()} == {
            "obs": ((size, 2), torch.float32),
            "critic_obs": ((size, 2), torch.float32),
            "action": ((size, 2), torch.float32),
            "reward": ((size,), torch.float32),
            "discount": ((size,), torch.float32),
            "next_obs": ((size, 2), torch.float32),
            "next_critic_obs": ((size, 2), torch.float32),
        }
        assert batch["critic_obs"] is batch["obs"] and batch["next_critic_obs"] is batch["next_obs"]


def test_random_stream_is_its_own() -> None:
    def samples(seed: int) -> torch.Tensor:
        history = History(3, 20, seed=seed)
        for _ in range(10):
            history.add(["going"] * 3)
        return torch.stack([history.buffer.draw(100) for _ in range(3)])

    torch.manual_seed(5)
    first = samples(1)
    assert torch.equal(first, samples(1)) and not torch.equal(first, samples(2))
    buffer = History(3, 20)
    buffer.add(["going"] * 3)
    before = torch.get_rng_state()
    buffer.buffer.sample(64)
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation whose shape or result the host has to know is called, once `_any` does not look."""
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2"}
    seen: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func._schema.name.removeprefix("aten::").rstrip("_")
            masked = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
            if name in waits or func._schema.name == "aten::_local_scalar_dense" or masked:
                seen.add(name)
            return func(*args, **(kwargs or {}))

    history = History(3, 20, n_step=3, privileged=True)
    history.add(["going", "spoilt", "truncated"])
    obs = torch.zeros(3, 2)
    critic = torch.zeros(3, 3)
    step = step_of(obs, critic_obs=critic, next_critic_obs=critic)
    with Watch():
        history.buffer.add(torch.zeros(3, 2), step)
    assert seen == {"_local_scalar_dense"}  # on a CPU it looks, and the watch works
    seen.clear()
    history.buffer._any = lambda mask: True  # type: ignore[method-assign]
    with Watch():
        history.buffer.add(torch.zeros(3, 2), step)
        history.buffer.start(obs, critic)
        history.buffer.sample(64)
    assert not seen


# ---- kinds of observations and actions ----


def test_bfloat16_rounds_observations_only() -> None:
    obs = torch.randn(4, 6)
    final = torch.randn(4, 6)
    space = vector_space(6)
    buffer = ReplayBuffer(4, 5, space, space, ACTION, "cpu", max_episode_steps=10, obs_dtype=torch.bfloat16)
    assert buffer.storage["obs"].dtype == torch.bfloat16
    buffer.start(obs, obs)
    reward, action = torch.randn(4), torch.rand(4, 2)
    buffer.add(action, step_of(obs + 1, reward=reward, next_obs=final, truncated=torch.ones(4, dtype=torch.bool)))
    batch = buffer.gather(torch.arange(4))
    for key, want in (("obs", obs), ("next_obs", final)):
        assert batch[key].dtype == torch.float32
        assert torch.equal(batch[key], want.bfloat16().float())
    assert torch.equal(batch["reward"], reward) and torch.equal(batch["action"], action)


def test_images_stay_bytes_and_discrete_actions_whole() -> None:
    space = Box(0, 255, (2, 4, 4), np.uint8)
    buffer = ReplayBuffer(
        3, 6, space, space, Discrete(5), "cpu", max_episode_steps=2, n_step=2, obs_dtype=torch.bfloat16
    )
    images = torch.randint(0, 256, (6, 3, 2, 4, 4), dtype=torch.uint8)
    actions = torch.randint(0, 5, (2, 3))
    buffer.start(images[0], images[0])
    on = torch.ones(3, dtype=torch.bool)
    buffer.add(actions[0], step_of(images[1]))
    buffer.add(actions[1], step_of(images[2], next_obs=images[3], truncated=on))
    batch = buffer.gather(torch.arange(6))
    assert batch["obs"].dtype == batch["next_obs"].dtype == torch.uint8
    assert torch.equal(batch["obs"], images[:2].flatten(0, 1))
    assert torch.equal(batch["next_obs"], torch.cat([images[3], images[3]]))
    assert batch["action"].dtype == torch.int64 and torch.equal(batch["action"], actions.flatten())


def test_bfloat16_leaves_a_privileged_view_of_images_to_its_kind() -> None:
    image, vector = Box(0, 255, (8,), np.uint8), vector_space(3)
    tensors = plan(2, 4, image, vector, ACTION, 3, torch.bfloat16)
    assert tensors["obs"][1] == torch.uint8 and tensors["critic_obs"][1] == torch.bfloat16


def test_stored_tensors_are_copies() -> None:
    history = History(1, 5)
    obs = history.obs.clone()
    history.obs.fill_(99)
    history.add(["going"])
    assert torch.equal(history.buffer.gather(torch.tensor([0]))["obs"], obs)


def test_actions_that_carry_gradients_leave_none() -> None:
    history = History(2, 5)
    action = torch.zeros(2, 2, requires_grad=True) * 1
    history.buffer.add(action, step_of(history.obs))
    assert not history.buffer.sample(3)["action"].requires_grad


# ---- memory ----


@pytest.mark.parametrize("limit", [None, 1, 7])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("action", [ACTION, Discrete(3)])
@pytest.mark.parametrize("critic", [5, 9])
def test_predicted_bytes_are_those_allocated(
    limit: int | None, dtype: torch.dtype | None, action: Box | Discrete, critic: int
) -> None:
    arguments = (3, 50, vector_space(5), vector_space(critic), action)
    buffer = ReplayBuffer(*arguments, "cpu", max_episode_steps=limit, obs_dtype=dtype)
    allocated = sum(x.untyped_storage().nbytes() for x in buffer.storage.values())
    assert predicted_bytes(plan(*arguments, limit, dtype)) == allocated
    assert buffer.bytes_per_transition == allocated / (49 * 3)


@pytest.mark.parametrize("obs_dim, action_dim", [(24, 6), (151, 61)])
@pytest.mark.parametrize("dtype, share", [(torch.float32, 0.6), (torch.bfloat16, 0.5)])
def test_smaller_than_the_buffer_of_fasttd3(obs_dim: int, action_dim: int, dtype: torch.dtype, share: float) -> None:
    """Its SimpleReplayBuffer has obs, next_obs, action and reward in float32, done and truncation in int64."""
    num_envs, slots = 2, 2000
    floats = [torch.zeros(num_envs, slots, size) for size in (obs_dim, obs_dim, action_dim, 1)]
    flags = [torch.zeros(num_envs, slots, dtype=torch.int64) for _ in range(2)]
    theirs = sum(x.untyped_storage().nbytes() for x in floats + flags) / (num_envs * slots)
    assert theirs == 4 * (2 * obs_dim + action_dim + 1) + 16
    space, action = vector_space(obs_dim), Box(-1, 1, (action_dim,), np.float32)
    buffer = ReplayBuffer(num_envs, slots, space, space, action, "cpu", max_episode_steps=1000, obs_dtype=dtype)
    assert buffer.bytes_per_transition <= share * theirs


def test_refuses_what_does_not_fit_and_says_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    space = vector_space(100)

    def make(slots: int, dtype: torch.dtype | None = None) -> ReplayBuffer:
        return ReplayBuffer(8, slots, space, space, ACTION, "cpu", max_episode_steps=100, obs_dtype=dtype)

    monkeypatch.setattr(replay, "free_bytes", lambda device: 2**20)
    with pytest.raises(ValueError, match=r"needs 0\.\d\d GiB, 0\.00 GiB are free on cpu: --buffer-size \d+ fits$") as e:
        make(10_000)  # bfloat16 would not fit either
    with pytest.raises(ValueError, match=r"fits, or --replay-dtype bfloat16 needs 0.00 GiB"):
        make(400)
    assert "\n" not in str(e.value)
    fits = int(str(e.value).split("--buffer-size ")[1].split()[0])
    make(fits // 8 + 1)
    with pytest.raises(ValueError, match=f"--buffer-size {fits} fits"):
        make(fits // 8 + 2)
    with pytest.raises(ValueError, match=r"GiB are free on cpu: --buffer-size \d+ fits$"):
        make(10_000, torch.bfloat16)
    monkeypatch.setattr(replay, "free_bytes", lambda device: 10)
    with pytest.raises(ValueError, match=r"take fewer --num-envs$"):
        make(10)


def test_free_memory_heeds_the_limit_of_every_group_above(tmp_path: Path) -> None:
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    leaf = root / "job" / "step"
    leaf.mkdir(parents=True)
    proc.write_text("0::/job/step\n")
    (leaf / "memory.max").write_text("max\n")
    for folder, limit in ((root / "job", 1000), (root, 5000)):
        for name, text in (("max", limit), ("current", 700), ("stat", "anon 500\ninactive_file 100\nfile 200")):
            (folder / f"memory.{name}").write_text(f"{text}\n")
    assert replay._cgroup_bytes(proc, root) == [400, 4400]
    assert replay._cgroup_bytes(tmp_path / "absent", root) == []
    assert 0 < replay.free_bytes(torch.device("cpu")) < 2**60


# ---- checkpoints ----


def through_a_file(state: dict[str, Any]) -> tuple[dict[str, Any], int]:
    file = io.BytesIO()
    torch.save(state, file)
    size = file.tell()
    file.seek(0)
    return torch.load(file, weights_only=True), size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 9, 11, 12, 13, 40])
def test_continues_bit_for_bit(rows: int, dtype: torch.dtype) -> None:
    def play(history: History, count: int) -> None:
        for now in range(count):
            outcomes = ["truncated" if now % 4 == 0 else "terminated" if now % 5 == 0 else "going", "going"]
            history.add([*outcomes, "spoilt" if now % 6 == 0 else "going"])

    history = History(3, 12, n_step=2, max_episode_steps=4, privileged=True, obs_dtype=dtype)
    play(history, rows)
    if rows:
        history.buffer.sample(10)
    if rows == 9:
        history.start()
    state, _ = through_a_file(history.buffer.state_dict())
    other = ReplayBuffer(
        3, 12, vector_space(2), vector_space(3), ACTION, "cpu",
        max_episode_steps=4, n_step=2, gamma=GAMMA, obs_dtype=dtype, seed=77,
    )  # fmt: skip
    other.start(torch.ones(3, 2), torch.ones(3, 3))  # whatever it has held is gone
    other.load_state_dict(state)
    first, second = history.buffer, other
    for more in range(30):
        if more or rows:
            assert len(first) == len(second)
            batches = first.sample(50), second.sample(50)
            assert all(torch.equal(x, batches[1][key]) for key, x in batches[0].items())
        history.buffer, counter, obs = first, history.counter, history.obs
        play(history, 1)
        history.buffer, history.counter, history.obs = second, counter, obs
        play(history, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wherever_it_is_kept_it_is_the_same(dtype: torch.dtype, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outcomes = [
        rng.choice(["going", "terminated", "truncated", "spoilt"], 4, p=(0.7, 0.1, 0.1, 0.1)) for _ in range(50)
    ]
    batches = []
    for storage in ("device", "host", str(tmp_path)):
        history = History(4, 12, privileged=True, n_step=3, max_episode_steps=1, obs_dtype=dtype, storage=storage)
        for each in outcomes:
            history.add(list(each))
        batches.append([history.buffer.sample(64) for _ in range(3)])
        state = history.buffer.state_dict()
    for batch, *others in zip(*batches, strict=True):
        assert all((batch == other).all() for other in others)
    assert list(tmp_path.iterdir()) == []  # the file has no name
    state["ring"]["obs"].zero_()
    assert (history.buffer.storage["obs"] != 0).any()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs an allocation that the disk can refuse")
def test_a_disk_that_cannot_hold_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(storage: str) -> None:
        ReplayBuffer(4, 1000, *2 * (vector_space(8),), ACTION, "cpu", max_episode_steps=100, storage=storage)

    with pytest.raises(ValueError, match=r"--replay-storage .*absent: must be device, host, or a folder"):
        make(str(tmp_path / "absent"))
    with monkeypatch.context() as patch:
        patch.setattr(replay.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 20, 1 << 20, 1 << 10))
        with pytest.raises(ValueError, match=r"0.00 GiB are free on the disk of .*: --buffer-size 12 fits"):
            make(str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(ValueError, match=f"^no replay buffer in {tmp_path}: No space left on device$"):
        make(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_state_is_a_copy_of_what_is_used() -> None:
    space = vector_space(1000)
    buffer = ReplayBuffer(2, 1000, space, space, ACTION, "cpu", max_episode_steps=100)  # 8 MB
    obs = torch.rand(2, 1000)
    buffer.start(obs, obs)
    for _ in range(4):
        buffer.add(torch.zeros(2, 2), step_of(obs))
    state = buffer.state_dict()
    _, size = through_a_file(state)
    assert size < 150_000
    kept = state["ring"]["obs"].clone()
    buffer.storage["obs"].zero_()
    assert torch.equal(state["ring"]["obs"], kept)


def test_refuses_the_state_of_another_buffer() -> None:
    def make(num_envs: int = 2, slots: int = 9, obs: int = 3, limit: int | None = 5, **options: Any) -> ReplayBuffer:
        space = vector_space(obs)
        return ReplayBuffer(num_envs, slots, space, space, ACTION, "cpu", max_episode_steps=limit, **options)

    state = make().state_dict()
    make(gamma=0.5, n_step=4, seed=9).load_state_dict(state)  # how it is read may change
    for other, words in (
        (make(num_envs=3), "num_envs is 2 there and 3 here"),
        (make(slots=8), "slots is 9 there and 8 here"),
        (make(obs=4), r"obs is \[3\] float32 there and \[4\] float32 here"),
        (make(obs_dtype=torch.bfloat16), r"obs is \[3\] float32 there and \[3\] bfloat16 here"),
        (make(limit=None), "max_episode_steps is 5 there and None here"),
    ):
        with pytest.raises(ValueError, match=f"does not fit this one: {words}$"):
            other.load_state_dict(state)
    privileged = ReplayBuffer(2, 9, vector_space(3), vector_space(4), ACTION, "cpu", max_episode_steps=5)
    with pytest.raises(ValueError, match=r"critic_obs is absent there and \[4\] float32 here"):
        privileged.load_state_dict(state)


# ---- misuse ----


def test_misuse_is_named() -> None:
    space = vector_space(3)

    def make(num_envs: int = 2, slots: int = 9, **options: Any) -> ReplayBuffer:
        return ReplayBuffer(num_envs, slots, space, space, ACTION, "cpu", **{"max_episode_steps": 5, **options})

    for options, words in (
        ({"num_envs": 0}, "num_envs is 0"),
        ({"slots": 1}, "slots is 1; it must be at least 2"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"n_step": 0}, "n_step is 0; with 9 slots it must be from 1 to 8"),
        ({"n_step": 9}, "n_step is 9"),
        ({"gamma": 1.1}, "gamma is 1.1"),
        ({"obs_dtype": torch.float16}, "obs_dtype is torch.float16"),
    ):
        with pytest.raises(ValueError, match=words):
            make(**options)  # type: ignore[arg-type]
    buffer, obs = make(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="is empty"):
        buffer.sample(1)
    with pytest.raises(ValueError, match="call start"):
        buffer.add(torch.zeros(2, 2), step_of(obs))
    buffer.start(obs, obs)
    with pytest.raises(ValueError, match=r"shape \[2\]; it must be \[2, 2\]"):
        buffer.add(torch.zeros(2), step_of(obs))
