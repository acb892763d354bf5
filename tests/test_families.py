"""Families of tasks against what the simulators know, and what scores of games mean."""

from fnmatch import fnmatchcase

import pytest

import envs
from envs import families
from envs.families import ATARI, ATARI_SCORES, OTHER_GAMES, human_normalised

FAMILIES = {name: getattr(families, name) for name in ("DMC", "PLAYGROUND", "GYM_MUJOCO", "HUMANOIDBENCH", "CLASSIC")}
FAMILIES["ATARI"] = ATARI
ELSEWHERE = [  # names of simulators that need not be installed
    *("h1-walk-v0", "h1-hurdle-v0", "h1hand-walk-v0", "h1hand-sit_simple-v0", "h1hand-basketball-v0"),
    *("G1JoystickFlatTerrain", "MuJoCoPlayground/CartpoleBalance-v1", "ALE/Pong-v5", "ALE/TicTacToe3d-v5"),
]


def belongs_to(task: str) -> list[str]:
    return [name for name, patterns in FAMILIES.items() if any(fnmatchcase(task, pattern) for pattern in patterns)]


def test_the_games_are_those_of_envpool() -> None:
    pytest.importorskip("envpool")
    from envpool.registration import registry

    theirs = {task for task, (module, _, _) in registry.specs.items() if module == "envpool.atari"}
    assert {name for name in ATARI if "/" not in name} == theirs
    assert {name for name in ATARI if "/" in name} == {f"ALE/{name}" for name in theirs}
    assert len(set(ATARI)) == len(ATARI)


def test_no_task_is_in_two_families() -> None:
    known = {task for backend in envs.backends() for task in envs.tasks(backend)}
    assert len(known) > 6  # more than our own
    assert not [(task, belongs_to(task)) for task in [*known, *ELSEWHERE] if len(belongs_to(task)) > 1]


@pytest.mark.parametrize(
    ("task", "family"),
    [
        ("WalkerWalk-v1", "DMC"),
        ("PointMassEasy-v1", "DMC"),
        ("HumanoidCMURun-v1", "DMC"),
        ("G1JoystickFlatTerrain-v1", "PLAYGROUND"),
        ("MuJoCoPlayground/CartpoleBalance-v1", "PLAYGROUND"),
        ("Humanoid-v5", "GYM_MUJOCO"),
        ("HumanoidStandup-v5", "GYM_MUJOCO"),
        ("Walker2d-v4", "GYM_MUJOCO"),
        ("h1hand-walk-v0", "HUMANOIDBENCH"),
        ("h1-sit_simple-v0", "HUMANOIDBENCH"),
        ("CartPole-v1", "CLASSIC"),
        ("Pendulum-v1", "CLASSIC"),
        ("Pong-v5", "ATARI"),
        ("ALE/Pong-v5", "ATARI"),
        ("Pong-v4", None),
        ("PongNoFrameskip-v4", None),
        ("BipedalWalker-v3", None),
        ("PointMass-v0", None),  # our own
        ("Pixels-v0", None),
    ],
)
def test_tasks_are_where_one_looks_for_them(task: str, family: str | None) -> None:
    assert belongs_to(task) == ([family] if family else [])


@pytest.mark.parametrize("prefix", ["", "ALE/"])
def test_human_normalised_score_is_linear_from_random_to_human(prefix: str) -> None:
    assert len(ATARI_SCORES) == 57
    for game, (random, human) in ATARI_SCORES.items():
        assert random < human
        task = f"{prefix}{game}-v5"
        assert human_normalised(task, random) == 0
        assert human_normalised(task, human) == 1
        assert human_normalised(task, 2 * human - random) == pytest.approx(2)
        assert human_normalised(task, 2 * random - human) == pytest.approx(-1)


def test_human_normalised_score_is_none_where_nobody_has_measured() -> None:
    others = OTHER_GAMES.split()
    assert not set(others) & set(ATARI_SCORES)
    unknown = [f"{prefix}{game}-v5" for game in others for prefix in ("", "ALE/")]
    unknown += ["CartPole-v1", "PointMass-v0", "Pong", "Pong-v4", "Pong-ram-v5", "mine/Pong-v5", "NoSuchGame-v5", ""]
    assert [task for task in unknown if human_normalised(task, 0.0) is not None] == []


def test_the_table_of_scores_is_that_of_its_source() -> None:
    """The sums of both columns, which a mistyped digit changes, and three rows, which tell the columns apart."""
    random, human = (sum(column) for column in zip(*ATARI_SCORES.values(), strict=True))
    assert (round(random, 1), round(human, 1)) == (50864.9, 606494.2)
    assert ATARI_SCORES["Pong"] == (-20.7, 14.6)
    assert ATARI_SCORES["Skiing"] == (-17098.1, -4336.9)
    assert ATARI_SCORES["VideoPinball"] == (16256.9, 17667.9)
