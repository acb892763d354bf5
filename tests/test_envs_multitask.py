"""Sets of tasks: each row is what the task alone would give, and says which task it is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import envs
from agents import config, fastsac, fasttd3, play
from agents.episodes import evaluate
from envs.base import Step, TaskError, VecEnv, spawn_seeds
from envs.check import examine
from envs.families import SETS, tasks_in
from envs.multitask import MT10, MultiTask, members
from networks.torso import TaskEmbedding

PAIR = "HopperHop-v1+HopperStand-v1"


def points(num_envs: int, seed: int = 0, limits: tuple[int, int] = (6, 6)) -> MultiTask:
    """Two point masses with a privileged view, called by their time limits."""

    def make_one(name: str, num_envs: int, seed: int, device: torch.device) -> VecEnv:
        return envs.make("PointMassPrivileged-v0", num_envs, seed, device, max_episode_steps=round(float(name)))

    return MultiTask([f"{limits[0]}", f"{limits[1]}.0"], num_envs, seed, torch.device("cpu"), make_one)


def equal(mine: Step, theirs: Step, rows: slice) -> bool:
    own = [getattr(mine, name)[rows] for name in ("reward", "terminated", "truncated", "valid")]
    alone = [theirs.reward, theirs.terminated, theirs.truncated, theirs.valid]
    for name in ("obs", "next_obs", "critic_obs", "next_critic_obs"):
        own.append(getattr(mine, name)[rows, :-2])
        alone.append(getattr(theirs, name))
    return all(torch.equal(x, y) for x, y in zip(own, alone, strict=True))


@pytest.mark.parametrize("privileged", [False, True])
def test_rows_are_those_of_each_task_alone(privileged: bool) -> None:
    env: VecEnv = points(6, 3) if privileged else envs.make(PAIR, 6, 3, max_episode_steps=6)
    names = 2 * ["PointMassPrivileged-v0"] if privileged else PAIR.split("+")
    seeds = spawn_seeds(3, 2, "multitask")
    alone = [envs.make(name, 3, seed, max_episode_steps=6) for name, seed in zip(names, seeds, strict=True)]
    generator = torch.Generator().manual_seed(0)
    for again in (None, 11):
        obs, critic_obs = env.reset(again)
        told = torch.eye(2).repeat_interleave(3, 0)
        assert torch.equal(obs[:, -2:], told) and torch.equal(critic_obs[:, -2:], told)
        assert (critic_obs is obs) != privileged
        of_reset = [None, None] if again is None else spawn_seeds(again, 2, "multitask")
        for part, seed, rows in zip(alone, of_reset, env.tasks.values(), strict=True):
            own, own_critic = part.reset(seed)
            assert torch.equal(obs[rows, :-2], own) and torch.equal(critic_obs[rows, :-2], own_critic)
        ends = 0
        for _ in range(15):
            action = torch.rand(6, *env.action_space.shape, generator=generator) * 2 - 1  # type: ignore[misc]
            step = env.step(action)
            assert torch.equal(step.obs[:, -2:], told) and torch.equal(step.next_obs[:, -2:], told)
            for part, rows in zip(alone, env.tasks.values(), strict=True):
                assert equal(step, part.step(action[rows]), rows)
            ends += int(step.truncated.sum())
        assert ends
    for part in (env, *alone):
        part.close()


def test_it_keeps_the_contract() -> None:
    found = examine(lambda num_envs, seed: envs.make(PAIR, num_envs, seed, max_episode_steps=12), 40)
    assert found.violations == []
    found = examine(points, 40)
    assert found.violations == []
    with pytest.raises(TaskError, match=r"the same time limit: 5 has .* and 5 steps, 7.0 has .* and 7 steps"):
        points(4, limits=(5, 7))


def test_it_continues_where_its_tasks_do() -> None:
    env, action = points(4), torch.full((4, 2), 0.3)
    assert env.snapshots
    env.reset()
    for _ in range(4):
        env.step(action)
    other = points(4, 99)
    other.reset()
    other.load_state_dict(env.state_dict())
    for _ in range(9):
        assert all(torch.equal(x, y) for x, y in zip(env.step(action)[:-1], other.step(action)[:-1], strict=True))


def test_the_sets_of_meta_world() -> None:
    assert len(set(MT10)) == 10 and set(MT10) <= set(members("MetaWorld/MT50-v3"))
    assert len(members("MetaWorld/MT50-v3")) == 50
    assert all(len(members(name)) == tasks_in(name) for name in (*SETS, PAIR)) and tasks_in("Hopper-v5") == 1
    env = envs.make("MetaWorld/MT10-v3", 10, 1)
    assert env.backend == "multitask" and list(env.tasks) == list(MT10)
    spec = envs.describe("MetaWorld/MT10-v3", "multitask")
    assert spec == env.spec and spec.obs_space.shape == (49,)
    obs, _ = env.reset()
    assert torch.equal(obs[:, 39:], torch.eye(10))
    assert (obs[:, 36:39] != 0).any(1).all()  # the goal
    assert env.step(torch.zeros(10, 4)).metrics["success"].shape == (10,)
    env.close()


def test_an_evaluation_tells_the_tasks_apart() -> None:
    env = points(6)
    score = evaluate(lambda obs: torch.ones(6, 2), env, seed=1)
    env.reset(1)
    totals, done = torch.zeros(6), torch.zeros(6, dtype=torch.bool)
    while not done.all():
        step = env.step(torch.ones(6, 2))
        totals += torch.where(done, 0, step.reward)
        done |= step.terminated | step.truncated
    for name, rows in env.tasks.items():
        assert score[f"episodic_return/{name}"] == pytest.approx(float(totals[rows].mean()))
    assert score["episodic_return"] == pytest.approx(float(totals.mean()))


@pytest.mark.parametrize(
    ("task", "num_envs", "message"),
    [
        ("MetaWorld/MT10-v3", 12, "num_envs is 12, must be a multiple of 10, the number of tasks"),
        (PAIR, 1, "num_envs is 1, must be a multiple of 2"),
        (
            "HopperHop-v1+HopperHop-v1",
            2,
            "is no set of tasks, must be MetaWorld/MT10-v3, MetaWorld/MT50-v3, or distinct",
        ),
        ("HopperHop-v1+", 2, "is no set of tasks"),
        (
            "HopperHop-v1+WalkerWalk-v1",
            2,
            r"vectors of one size.* HopperHop-v1 has \(15,\).*, WalkerWalk-v1 has \(24,\)",
        ),
        ("HopperHop-v1+HoperStand-v1", 2, "no task is called 'HoperStand-v1', did you mean HopperStand-v1"),
        ("Pixels-v0+Breakout-v5", 2, "vectors of one size"),
    ],
)
def test_what_is_no_set_is_named(task: str, num_envs: int, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        envs.make(task, num_envs)


def test_an_agent_learns_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        f"--env-id {PAIR} --num-envs 4 --eval-envs 2 --total-timesteps 4_400 --learning-starts 40 --eval-every 4_400"
    )
    assert fasttd3.main([*flags.split(), "--run-dir", str(tmp_path / "run"), "--num-updates", "1", "--quiet"]) == 0
    capsys.readouterr()
    tags = {line.split(",")[3] for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]}
    assert {f"eval/episodic_return/{name}" for name in PAIR.split("+")} <= tags
    assert play.main([str(tmp_path / "run"), "--episodes", "2"]) == 0
    assert "\nmean" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["fasttd3", "fastsac"])
@pytest.mark.parametrize("width", [0, 5])
def test_agents_embed_the_task_and_scale_its_rewards(kind: str, width: int) -> None:
    module = {"fasttd3": fasttd3, "fastsac": fastsac}[kind]
    words = f"--env-id {PAIR} --size small --task-embedding {width} --num-envs 6 --eval-every 0 --batch-size 8 --quiet"
    args = module.resolve(config.parse(module.Args, module.presets, words.split()).args)
    args = replace(args, reward_norm=True, num_envs=6)
    agent, replay, env, _ = module.build(args)
    layers = [type(layer).__name__ for layer in agent.actor.torso]
    assert (layers[0] == "TaskEmbedding") == (width > 0) == (type(agent.critic.torso[0]).__name__ == "TaskEmbedding")
    assert agent.actor.torso[width > 0].in_features == (15 + width if width else 17)
    obs, critic_obs = env.reset()
    replay.start(obs, critic_obs)
    for _ in range(12):
        action = agent.explore_uniformly()
        step = env.step(action)
        step = step._replace(reward=torch.where(env.task_ids == 1, 100.0, 1.0))
        replay.add(action, step)
        agent.observe(step)
    assert agent.reward_scale.largest[1] == 100 * agent.reward_scale.largest[0] > 0
    batch = replay.sample(64)
    second = batch["obs"][:, -1] == 1
    prepared = agent.prepare(batch)
    torch.testing.assert_close(prepared["reward"][second].max(), prepared["reward"][~second].max())  # on one scale
    assert torch.equal(prepared["obs"][:, -2:], batch["obs"][:, -2:])  # a one-hot vector is not normalised
    before = {name: x.clone() for name, x in agent.modules.state_dict().items()}
    agent.update(batch)
    agent.update(batch)
    moved = {name for name, x in agent.modules.state_dict().items() if not torch.equal(x, before[name])}
    if width:
        assert {"actor.torso.0.weight", "critic.torso.0.weight", "target.torso.0.weight"} <= moved
    assert all(torch.isfinite(x).all() for x in agent.report(batch).values())
    env.close()


def test_a_task_s_vector_stands_in_its_place() -> None:
    embedding = TaskEmbedding(2, 3, 4)
    with torch.no_grad():
        embedding.weight[0].fill_(0.1)  # shorter than 1
        embedding.weight[1].fill_(5.0)
    x = torch.tensor([[7.0, 8, 1, 0, 0, 9], [7, 8, 0, 1, 0, 9]])
    out = embedding(x)
    assert out.tolist()[0] == pytest.approx([7, 8, 0.1, 0.1, 0.1, 0.1, 9])
    assert out.tolist()[1] == pytest.approx([7, 8, 0.5, 0.5, 0.5, 0.5, 9])
