"""Symmetry: tasks that are the same in a mirror, what agents make of it, and the refusal of what is no reflection."""

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from test_agents import build, final_state, metric_rows, run_main, same
from torch import Tensor

import envs
from agents.mirror import asymmetry, symmetry_of, with_images
from envs.base import Mirror, Symmetry, TaskError, VecEnv
from envs.torch import TASKS, PointMass, PointMassPrivileged
from envs.wrappers import add_noise, delay_actions, delay_observations, price_action_rate, with_symmetry

ROOT = Path(__file__).resolve().parents[1]
SYMMETRIC = ("PointMass-v0", "PointMassPrivileged-v0", "ClosedForm-v0")
every_kind = pytest.mark.parametrize("kind", ["fasttd3", "fastsac", "fastsac-scalar", "ppo"])
every_agent = pytest.mark.parametrize("kind", ["fasttd3", "fastsac", "ppo"])
FLIP = np.array([-1, 1, -1, 1, -1, 1])
"""of what the critic of the point mass sees: position, velocity and goal, each with its x first"""


def discrete(num_envs: int = 2, seed: int = 0) -> VecEnv:
    """`ClosedFormDiscrete` with the symmetry that it has: left is right, and staying is staying."""
    return with_symmetry(envs.make("ClosedFormDiscrete-v0", num_envs, seed), [0], [2, 1, 0], obs_sign=[-1])


# ---- tasks -----------------------------------------------------------------------------------------------------------


def reflected(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a torch task as a mirror shows it: the first coordinate of each vector negated, and the position."""
    sign = torch.tensor([-1.0, 1.0])
    return {name: (x * sign if x.ndim == 2 else -x) if x.is_floating_point() else x for name, x in state.items()}


@pytest.mark.parametrize("task", [*SYMMETRIC, "ClosedFormDiscrete-v0"])
def test_tasks_are_the_same_in_a_mirror(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PointMassPrivileged, "NOISE", 0.0)  # of which two environments have two draws
    here, there = (discrete(256, 1) if "Discrete" in task else envs.make(task, 256, 1) for _ in range(2))
    symmetry = symmetry_of(here)
    here.reset()
    inner = getattr(there, "env", there)
    inner.reset()
    state = getattr(here, "env", here).state_dict()
    inner.load_state_dict({**state, "state": reflected(state["state"])})
    for _ in range(3):
        shape = (256, *here.action_space.shape) if here.action_space.shape else (256,)
        action = torch.rand(shape) * 2 - 1 if here.action_space.shape else torch.randint(3, (256,))
        one, other = here.step(action), there.step(symmetry.action(action))
        goes_on = ~(one.terminated | one.truncated)  # what begins anew begins as it likes
        assert torch.equal(one.reward, other.reward) and torch.equal(one.terminated, other.terminated)
        assert torch.equal(symmetry.obs(one.next_obs), other.next_obs)
        assert torch.equal(symmetry.critic_obs(one.next_critic_obs), other.next_critic_obs)
        if not goes_on.all():
            break


def test_the_walker_of_the_documentation_is_the_same_in_a_mirror() -> None:
    """In MuJoCo itself: both legs are alike, so that a state with the legs swapped moves as the other did."""
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    text = (ROOT / "docs" / "own-environment.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- runnable: walker.py -->\n```python\n(.*?)```", text, re.DOTALL)
    assert block
    module: dict[str, Any] = {}
    exec(compile(block[1], "walker.py", "exec"), module)
    env = module["Walker"](2, 0, torch.device("cpu"))
    symmetry = symmetry_of(env)
    env.close()
    engine = gymnasium.make("Walker2d-v5").unwrapped
    rng = np.random.default_rng(0)

    def step(seen: Tensor, x: float, action: Tensor) -> tuple[Tensor, float]:
        engine.reset(seed=0)
        engine.set_state(np.append(x, seen[:8].numpy()), seen[8:].numpy())
        obs, reward, *_ = engine.step(action.numpy())
        return torch.from_numpy(obs), float(reward)

    for trial in range(20):
        height = 1.25 if trial % 2 else 1.0  # in the air, and on the ground
        seen = torch.from_numpy(np.concatenate([[height], 0.3 * rng.standard_normal(7), rng.standard_normal(9)]))
        action = torch.from_numpy(rng.uniform(-1, 1, 6)).float()
        one, reward = step(seen, 0.0, action)
        other, again = step(symmetry.obs(seen), 0.0, symmetry.action(action))
        torch.testing.assert_close(symmetry.obs(one), other, rtol=1e-5, atol=1e-5)
        assert reward == pytest.approx(again, abs=1e-5)
        assert (one - other).abs().max() > 1e-3  # else nothing was mirrored


# ---- wrappers --------------------------------------------------------------------------------------------------------

EYE = list(range(6))


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("PointMass-v0", {"obs": EYE[:5], "action": [0, 1]}, "obs has 5 entries and 6 signs, must be 6 of each"),
        ("PointMass-v0", {"obs": [1, 2, 0, 3, 4, 5], "action": [0, 1]}, "obs mirrored twice is another: entry 0 comes"),
        ("PointMass-v0", {"obs": [0, 0, 2, 3, 4, 5], "action": [0, 1]}, "must have each number from 0 to 5 once"),
        ("PointMass-v0", {"obs": [-1, 0, 2, 3, 4, 5], "action": [0, 1]}, "must have each number from 0 to 5 once"),
        ("PointMass-v0", {"obs": EYE, "action": [1, 0], "action_sign": [1, -1]}, "action mirrored twice is another"),
        ("PointMass-v0", {"obs": EYE, "action": [0, 1], "action_sign": [2, 1]}, "action_sign has 2 at 0"),
        ("PointMass-v0", {"obs": EYE, "action": [0, 1], "obs_sign": [1]}, "6 entries and 1 signs"),
        ("PointMass-v0", {"obs": EYE, "action": [0, 1], "critic_obs": EYE}, "has no privileged view"),
        ("PointMassPrivileged-v0", {"obs": EYE[:4], "action": [0, 1]}, "so critic_obs must say how it is mirrored"),
        ("PointMassPrivileged-v0", {"obs": EYE[:4], "action": [0, 1], "critic_obs": [0]}, "critic_obs has 1 entries"),
        ("ClosedFormDiscrete-v0", {"obs": [0], "action": [2, 1, 0], "action_sign": [1, 1, 1]}, "no action_sign"),
        ("ClosedFormDiscrete-v0", {"obs": [0], "action": [1, 2, 0]}, "action mirrored twice is another"),
        ("Pixels-v0", {"obs": [0], "action": [3, 2, 1, 0]}, "needs observations that are vectors"),
        ("HopperHop-v1+HopperStand-v1", {"obs": EYE, "action": [0, 1]}, "around each task"),
    ],
)
def test_what_is_no_reflection_is_refused(task: str, words: dict[str, Any], message: str) -> None:
    env = envs.make(task, 2)
    with pytest.raises(TaskError, match=message):
        with_symmetry(env, **words)
    env.close()


def test_entries_and_signs_say_what_the_image_is() -> None:
    env = with_symmetry(
        envs.make("PointMassPrivileged-v0", 2),
        obs=[1, 0, 2, 3], obs_sign=[-1, -1, 1, -1], action=[1, 0], critic_obs=[0, 1, 3, 2, 4, 5],
    )  # fmt: skip
    symmetry = symmetry_of(env)
    assert symmetry.obs(torch.tensor([10.0, 20, 30, 40])).tolist() == [-20, -10, 30, -40]
    assert symmetry.critic_obs(torch.tensor([[1.0, 2, 3, 4, 5, 6]])).tolist() == [[1, 2, 4, 3, 5, 6]]
    assert symmetry.action(torch.tensor([0.5, -0.25])).tolist() == [-0.25, 0.5]
    assert symmetry_of(discrete()).action(torch.tensor([0, 1, 2, 0])).tolist() == [2, 1, 0, 2]


def test_wrappers_hand_it_on() -> None:
    inner = envs.make("PointMassPrivileged-v0", 4, 0)
    symmetry = symmetry_of(inner)
    for env in (add_noise(inner, 0.1, 0), delay_actions(inner, 1), delay_observations(inner, 1)):
        assert env.symmetry is symmetry
    add_noise(with_symmetry(inner, [0, 2, 1, 3], [0, 1], critic_obs=EYE), [0.1, 0.2, 0.2, 0.3], 0)
    with pytest.raises(TaskError, match="not the same for a feature and for its mirror image"):
        add_noise(with_symmetry(inner, [0, 2, 1, 3], [0, 1], critic_obs=EYE), [0.1, 0.2, 0.3, 0.4], 0)
    priced = price_action_rate(inner, 0.1)
    longer = symmetry_of(priced)
    obs, critic_obs, action = torch.randn(5, 4), torch.randn(5, 6), torch.randn(5, 2)
    for mirror, part, view in ((longer.obs, symmetry.obs, obs), (longer.critic_obs, symmetry.critic_obs, critic_obs)):
        expected = torch.cat([part(view), symmetry.action(action)], 1)
        assert torch.equal(mirror(torch.cat([view, action], 1)), expected)
    assert torch.equal(longer.action(action), symmetry.action(action))


# ---- batches ---------------------------------------------------------------------------------------------------------


def random_batch(size: int = 12, privileged: bool = False, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = (torch.randn(size, 4 if privileged else 6, generator=g) for _ in range(2))
    critic_obs, next_critic_obs = (torch.randn(size, 6, generator=g) if privileged else x for x in (obs, next_obs))
    return {
        "obs": obs,
        "critic_obs": critic_obs,
        "action": torch.rand(size, 2, generator=g) * 2 - 1,
        "reward": torch.rand(size, generator=g),
        "discount": torch.rand(size, generator=g),
        "next_obs": next_obs,
        "next_critic_obs": next_critic_obs,
    }


def by_hand(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The images alone, of observations and actions of the point mass."""
    out = {}
    for name, x in batch.items():
        known = name == "action" or name.endswith("obs")
        out[name] = x * torch.tensor(FLIP[: x.shape[-1]], dtype=torch.float32) if known else x
    return out


def joined(one: dict[str, Tensor], other: dict[str, Tensor], shared: bool = True) -> TensorDict:
    both = {name: torch.cat([one[name], other[name]]) for name in one}
    if shared:
        both |= {"critic_obs": both["obs"], "next_critic_obs": both["next_obs"]}
    return TensorDict(both, [2 * len(one["reward"])])


@pytest.mark.parametrize("privileged", [False, True])
def test_images_stand_behind_what_they_are_of(privileged: bool) -> None:
    env = envs.make("PointMassPrivileged-v0" if privileged else "PointMass-v0", 2)
    batch = random_batch(privileged=privileged)
    found = with_images(batch, symmetry_of(env))
    expected = joined(batch, by_hand(batch), shared=False)
    assert all(torch.equal(found[name], expected[name]) for name in batch)
    assert (found["obs"] is found["critic_obs"]) is (found["next_obs"] is found["next_critic_obs"]) is not privileged
    rows = {name: torch.stack([x, 2 * x]) for name, x in batch.items()}  # two minibatches
    twice = with_images(rows, symmetry_of(env), dim=1)
    assert all(torch.equal(twice[name], torch.stack([x, 2 * x])) for name, x in found.items())


def make(kind: str, env_id: str = "PointMass-v0", **changes: Any) -> Any:
    torch.manual_seed(3)
    return build(kind, env_id=env_id, symmetry=True, obs_norm=False, reward_norm=False, **changes)[0]


@every_kind
def test_gradients_are_those_of_a_batch_that_was_mirrored_by_hand(kind: str) -> None:
    if kind == "ppo":
        batch, images = (TensorDict(x, [20]) for x in (rows_of_ppo(), by_hand(rows_of_ppo())))
        both = torch.cat([batch, images])
        sizes = {"num_envs": 2, "num_steps": 10, "num_minibatches": 1}
    else:
        batch, both, sizes = TensorDict(random_batch(), [12]), joined(random_batch(), by_hand(random_batch())), {}
    augmenting, plain = make(kind, **sizes), make(kind, **{**sizes, **({"num_envs": 4} if sizes else {})})
    plain.mirror = None
    torch.manual_seed(0)
    found = augmenting.gradient(batch).clone()
    torch.manual_seed(0)
    expected = plain.gradient(both).clone()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    torch.manual_seed(0)
    alone = plain.gradient(batch)
    assert (alone - found).norm() > 1e-2 * found.norm()


def rows_of_ppo(size: int = 20) -> dict[str, Tensor]:
    """Rows of a rollout, normalised already."""
    g = torch.Generator().manual_seed(1)
    names = ("log_prob", "value", "advantage", "target")
    rows = {"obs": torch.randn(size, 6, generator=g), "action": torch.randn(size, 2, generator=g)}
    rows |= {name: torch.randn(size, generator=g) for name in names}
    return {**rows, "log_prob": rows["log_prob"] - 2, "valid": torch.ones(size)}


@pytest.mark.parametrize("kind", ["fasttd3", "ppo"])
def test_which_of_both_was_seen_does_not_matter(kind: str) -> None:
    rows = rows_of_ppo() if kind == "ppo" else random_batch(20)
    sizes = {"num_envs": 2, "num_steps": 10, "num_minibatches": 1} if kind == "ppo" else {"policy_noise": 0.0}
    agent = make(kind, **sizes)
    seen, images = (agent.gradient(TensorDict(x, [20])).clone() for x in (rows, by_hand(rows)))
    torch.testing.assert_close(seen, images, rtol=1e-4, atol=1e-6)
    agent.mirror = None
    seen, images = (agent.gradient(TensorDict(x, [20])).clone() for x in (rows, by_hand(rows)))
    assert (seen - images).norm() > 0.1 * seen.norm()


def sides(agent: Any, obs: Tensor, action: Tensor) -> float:
    """How far actor and critics are from their mirror images."""
    symmetry = agent.symmetry
    actor = asymmetry(agent.act, obs, symmetry)
    here, there = agent.critic(obs, action), agent.critic(symmetry.obs(obs), symmetry.action(action))
    return max(float(actor), float((here - there).abs().max().detach()))


@torch.no_grad()
def symmetrise(agent: Any) -> None:
    """Give the second half of the hidden units what the first half sees in a mirror, and treat both alike behind."""
    symmetry, half = agent.symmetry, 8
    hidden, head = agent.actor.torso[0], agent.actor.head
    hidden.weight[half:], hidden.bias[half:] = symmetry.obs(hidden.weight[:half]), hidden.bias[:half]
    head.weight.normal_()
    head.weight[:, half:] = symmetry.action(head.weight[:, :half].T).T
    head.bias.zero_()
    pair = Mirror(torch.arange(8), torch.cat([symmetry.obs.sign, symmetry.action.sign]))
    hidden, head = agent.critic.torso[0], agent.critic.head
    hidden.weight[..., half:] = pair(hidden.weight[..., :half].mT).mT
    hidden.bias[..., half:], head.weight[:, half:] = hidden.bias[..., :half], head.weight[:, :half]
    agent.target.load_state_dict(agent.critic.state_dict())


def test_what_is_symmetric_stays_so() -> None:
    """Gradients of a symmetric actor and of symmetric critics lead to networks that are symmetric again."""
    g = torch.Generator().manual_seed(5)
    obs, action = torch.randn(64, 6, generator=g), torch.rand(64, 2, generator=g) * 2 - 1
    apart = []
    for augmented in (True, False):
        agent = make("fasttd3", actor_hidden=(16,), critic_hidden=(16,), policy_noise=0.0)
        symmetrise(agent)
        assert sides(agent, obs, action) < 1e-5
        agent.mirror = agent.mirror if augmented else None
        vectors = agent.critic_flat.vector, agent.actor_flat.vector
        for seed in range(3):
            gradients = agent.gradient(TensorDict(random_batch(seed=seed), [12])).split([len(v) for v in vectors])
            with torch.no_grad():
                for vector, gradient in zip(vectors, gradients, strict=True):
                    vector -= 0.5 * gradient / gradient.norm()
        apart.append(sides(agent, obs, action))
    assert apart[0] < 1e-4 and apart[1] > 0.01


@every_agent
def test_normalisers_become_symmetric(kind: str) -> None:
    agent, *others = build(kind, env_id="PointMassPrivileged-v0", symmetry=True, obs_norm=True)
    env = next(env for env in others if isinstance(env, VecEnv))
    env.reset()
    seen = [env.step(torch.rand(4, 2)) for _ in range(20)]  # to the right, mostly
    if kind == "ppo":
        agent.observe(seen)
    else:
        for step in seen:
            agent.observe(step)
    for norm, mirror in ((agent.obs_norm, agent.mirror.obs), (agent.critic_obs_norm, agent.mirror.critic_obs)):
        assert norm.count == 2 * 4 * 20
        torch.testing.assert_close(mirror(norm.mean), norm.mean, rtol=0, atol=1e-7)
        torch.testing.assert_close(mirror.sign.abs() * norm.scale[mirror.source], norm.scale)
        obs = torch.randn(5, len(norm.mean))
        torch.testing.assert_close(mirror(norm(obs)), norm(mirror(obs)), rtol=1e-5, atol=1e-5)


def test_ppo_measures_its_step_by_what_was_drawn() -> None:
    """Images are far from the old policy where that was not symmetric, however small the step."""
    agent = make("ppo", num_envs=2, num_steps=10, num_minibatches=1)
    rows = rows_of_ppo()
    with torch.no_grad():
        policy, _ = agent(rows["obs"], rows["obs"])
        rows["log_prob"] = policy.log_prob(rows["action"])
    columns = agent.prepare(agent.augment(rows))
    assert len(columns["weight"]) == 40 and float(columns["weight"].sum()) == pytest.approx(1)
    seen = agent.differentiate(columns)
    assert seen.log_ratio[:20].abs().max() < 1e-5 < seen.log_ratio[20:].abs().max()
    kl = agent.divergence(seen.log_ratio, columns["weight"])
    assert abs(float(kl)) < 1e-6
    assert float(agent.losses(columns, seen)[3]) == float(kl)


# ---- runs ------------------------------------------------------------------------------------------------------------


@every_kind
def test_off_is_what_it_was_before_the_task_told(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run_main(kind, tmp_path / "told")
    monkeypatch.setattr(PointMass, "signs", {})
    untold = run_main(kind, tmp_path / "untold")
    assert same(final_state(told), final_state(untold))
    rows = [row for row in metric_rows(told) if "policy/asymmetry" not in row]
    assert rows == metric_rows(untold) and len(rows) < len(metric_rows(told))


def last(run_dir: Path, metric: str) -> float:
    with open(run_dir / "metrics.csv", newline="") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == metric][-1]


def test_a_policy_that_learns_from_both_sides_is_more_even(tmp_path: Path) -> None:
    size = {"num_envs": 16, "num_steps": 64, "total_timesteps": 8192, "log_every": 8192, "eval_every": 0}
    on, off = (last(run_main("ppo", tmp_path / str(x), symmetry=x, **size), "policy/asymmetry") for x in (True, False))
    assert on < 0.6 * off


def test_discrete_actions_are_mirrored_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {size: discrete(size) for size in (2, 4)}  # to evaluate in, and to train in
    monkeypatch.setattr(envs, "make", lambda task, num_envs, *_, **__: told[num_envs])
    run_dir = run_main("ppo-discrete", tmp_path, symmetry=True)
    assert 0 <= last(run_dir, "policy/asymmetry") <= 1


@every_agent
def test_a_run_is_played_where_no_symmetry_is_known(kind: str, tmp_path: Path, capsys: Any) -> None:
    from agents import play

    run_dir = run_main(kind, tmp_path, symmetry=True)
    (tmp_path / "elsewhere.py").write_text(
        "import envs\n"
        "def Env(num_envs, seed, device):\n"
        "    env = envs.make('PointMass-v0', num_envs, seed, device)\n"
        "    env.symmetry = None\n"
        "    return env\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert play.main([str(run_dir), "--env-id", "elsewhere:Env", "--episodes", "2"]) == 0
    assert "return" in capsys.readouterr().out


def test_symmetry_goes_where_the_task_is() -> None:
    for task in SYMMETRIC:
        assert isinstance(envs.make(task, 2).symmetry, Symmetry)
    for task in set(TASKS) - set(SYMMETRIC):
        assert envs.make(task, 2).symmetry is None
