"""Files of FastTD3 and CleanRL: what is in them acts and judges as their own networks do; what does not fit is named.

The networks of the tests are written anew after the layout of those files. With checkouts of their repositories in
FASTTD3_REFERENCE and CLEANRL_REFERENCE their own classes are held against ours too.
"""

import copy
import json
import math
import os
import pickle
import re
import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents import fastsac, fasttd3, origin, ppo
from agents.published import read_fasttd3
from benchmarks import speed

HIDDEN, ATOMS, OBS, ACTION = 32, 11, 6, 2  # of PointMass-v0
PLACES = ("", "sim_actor", "sim_critic", "sim_both")


class Simplices(nn.Module):
    """Linear, LayerNorm, softmax in each of 3 groups of 4."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, 12), nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.norm(self.linear(x)).unflatten(-1, (3, 4)), -1).flatten(-2)


def hidden(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN // 2), nn.ReLU())


class Actor(nn.Module):
    def __init__(self, sem: bool) -> None:
        super().__init__()
        self.net = hidden(OBS)
        plain = nn.Sequential(nn.Linear(HIDDEN // 2, HIDDEN // 4), nn.ReLU())
        self.fc_head: nn.Module = Simplices(HIDDEN // 2) if sem else plain
        self.fc_mu = nn.Sequential(nn.Linear(12 if sem else HIDDEN // 4, ACTION), nn.Tanh())
        self.register_buffer("noise_scales", torch.rand(5, 1))
        self.register_buffer("std_min", torch.tensor(0.1))
        self.register_buffer("std_max", torch.tensor(0.4))

    def forward(self, obs: Tensor) -> Tensor:
        return self.fc_mu(self.fc_head(self.net(obs)))


class Judge(nn.Module):
    def __init__(self, sem: bool) -> None:
        super().__init__()
        self.net = hidden(OBS + ACTION)
        last = [nn.Linear(HIDDEN // 2, HIDDEN // 4), nn.ReLU(), nn.Linear(HIDDEN // 4, ATOMS)]
        self.fc_head = nn.Sequential(*([Simplices(HIDDEN // 2), nn.Linear(12, ATOMS)] if sem else last))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.fc_head(self.net(torch.cat([obs, action], 1)))


class Critic(nn.Module):
    def __init__(self, sem: bool) -> None:
        super().__init__()
        self.qnet1, self.qnet2 = Judge(sem), Judge(sem)
        self.register_buffer("q_support", torch.linspace(-20, 30, ATOMS))


class File:
    """A checkpoint of theirs, and the networks in it."""

    def __init__(self, place: str) -> None:
        torch.manual_seed(PLACES.index(place))
        self.actor = Actor(place in ("sim_actor", "sim_both"))
        self.critic, self.target = (Critic(place in ("sim_critic", "sim_both")) for _ in range(2))
        self.mean, self.variance = torch.randn(1, OBS), torch.rand(1, OBS) + 0.5
        norm = {"_mean": self.mean, "_var": self.variance, "_std": self.variance.sqrt(), "count": torch.tensor(640)}
        self.content: dict[str, Any] = {
            "actor_state_dict": self.actor.state_dict(),
            "qnet_state_dict": self.critic.state_dict(),
            "qnet_target_state_dict": self.target.state_dict(),
            "obs_normalizer_state": norm,
            "critic_obs_normalizer_state": copy.deepcopy(norm),
            "args": {
                **{"env_name": "PointMass-v0", "obs_normalization": True, "num_atoms": ATOMS, "v_min": -20.0},
                **{"v_max": 30.0, "actor_hidden_dim": HIDDEN, "critic_hidden_dim": HIDDEN, "sim_type": place},
                **{"sim_dimension": 4, "actor_seq_len": 3, "critic_seq_len": 3, "learning_rate": 3e-4, "seed": 1},
            },
            "global_step": 5000,
        }

    def write(self, path: Path) -> Path:
        torch.save(self.content, path)
        return path

    def normal(self, obs: Tensor) -> Tensor:
        return (obs - self.mean) / (self.variance.sqrt() + 1e-2)


WORDS = "--env-id PointMass-v0 --device cpu --num-envs 4 --eval-every 0 --total-timesteps 80 --amp off --quiet"


@pytest.mark.parametrize("place", PLACES)
def test_a_run_starts_with_their_networks(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen = File(place), []
    monkeypatch.setattr(fasttd3, "train", lambda run, agent, *_: seen.append(agent) or {})
    source = file.write(tmp_path / "theirs.pt")
    words = [*WORDS.split(), "--init-from", str(source), "--run-dir", str(tmp_path / "run")]
    assert fasttd3.main(words) == 0
    (agent,) = seen
    obs, action = 3 * torch.randn(50, OBS), torch.rand(50, ACTION) * 2 - 1
    close = {"rtol": 1e-5, "atol": 1e-5}
    with torch.no_grad():
        torch.testing.assert_close(agent.act(obs), file.actor(file.normal(obs)), **close)
        for ours, theirs in ((agent.critic, file.critic), (agent.target, file.target)):
            logits = ours(agent.critic_obs_norm(obs), action)
            for mine, net in zip(logits, (theirs.qnet1, theirs.qnet2), strict=True):
                torch.testing.assert_close(mine, net(file.normal(obs), action), **close)
            assert torch.equal(ours.support, theirs.q_support)
    assert not torch.equal(agent.critic.head.weight, agent.target.head.weight)
    assert float(agent.obs_norm.count) == 640
    agent.obs_norm.update(obs)  # goes on learning from where it was
    n, first, second = 690.0, 640 / 690, 50 / 690
    mean = first * file.mean[0] + second * obs.mean(0)
    torch.testing.assert_close(agent.obs_norm.mean, mean, **close)
    square = first * (file.variance[0] + file.mean[0].square()) + second * obs.square().mean(0) - mean.square()
    torch.testing.assert_close((agent.obs_norm.square / n).float(), square, rtol=1e-4, atol=1e-4)
    noted = json.loads((tmp_path / "run" / "manifest.json").read_text())["init_from"]
    assert noted["path"] == str(source.resolve()) and noted["step"] == 5000 and noted["task"] == "PointMass-v0"


def test_it_trains_on_and_is_resumed_without_the_file(tmp_path: Path) -> None:
    source = File("sim_both").write(tmp_path / "theirs.pt")
    words = f"{WORDS} --init-from {source} --run-dir {tmp_path / 'run'} --learning-starts 8 --batch-size 16"
    words += " --buffer-size 160 --num-updates 1 --reward-norm"
    assert fasttd3.main(words.split()) == 0
    source.unlink()
    assert fasttd3.main(["--resume", str(tmp_path / "run"), "--total-timesteps", "160", "--quiet"]) == 0


def test_compiled_networks_have_other_names(tmp_path: Path) -> None:
    file = File("sim_both")
    plain = read_fasttd3(file.write(tmp_path / "plain.pt"))
    for name in ("actor_state_dict", "qnet_state_dict", "qnet_target_state_dict"):
        file.content[name] = {f"_orig_mod.{key}": x for key, x in file.content[name].items()}
    compiled = read_fasttd3(file.write(tmp_path / "compiled.pt"))
    assert plain.modules.keys() == compiled.modules.keys()
    assert all(torch.equal(x, compiled.modules[name]) for name, x in plain.modules.items())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["EVIL_DIR"],)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actor_state_dict": None}, "is no checkpoint of FastTD3: it lacks one of actor_state_dict"),
        ({"args": {}}, "does not fit: its networks are not FastTD3's plain ones, or of another version"),
        (
            {"actor_state_dict": {"embedder.w.weight": torch.ones(2, 2)}},
            "does not fit: .* embedder.w.weight is no layer",
        ),
        ({"args": SimpleNamespace(a=1)}, "cannot be read"),
        ({"more": Evil()}, "cannot be read"),
    ],
)
def test_what_does_not_fit_is_one_line(
    change: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVIL_DIR", str(tmp_path / "evil"))
    file = File("")
    file.content |= change
    source = file.write(tmp_path / "theirs.pt")
    refused(fasttd3, source, message, capsys, tmp_path)
    assert not (tmp_path / "evil").exists()


def refused(module: Any, source: Path, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        module.main([*WORDS.split(), "--init-from", str(source), "--run-dir", str(tmp_path / "run")])
    errors = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world", b"no checkpoint", b"\x80\x02.", b"a.", b"e", b"u.", b"{}", bytes(100), b"PK\x03\x04"],
)
@pytest.mark.parametrize("agent", [fasttd3, ppo])
@pytest.mark.filterwarnings("error")
def test_what_torch_has_not_saved_is_one_line(
    agent: Any, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.pt").write_bytes(content)
    refused(agent, tmp_path / "theirs.pt", "theirs.pt cannot be read: torch.save has not written it", capsys, tmp_path)


def test_a_plain_pickle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for protocol in range(6):
        (tmp_path / "theirs.pt").write_bytes(pickle.dumps({"a": 1.5}, protocol))
        refused(ppo, tmp_path / "theirs.pt", "theirs.pt (cannot be read|is no checkpoint)", capsys, tmp_path)


def test_other_files_agents_and_tasks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    refused(fasttd3, tmp_path / "text.pt", "cannot be read", capsys, tmp_path)
    source = File("").write(tmp_path / "theirs.pt")
    refused(fastsac, source, "FastTD3's for agents/fasttd3.py and CleanRL's PPO for agents/ppo.py", capsys, tmp_path)
    refused(ppo, source, "is no checkpoint of CleanRL's PPO: it is not the state_dict", capsys, tmp_path)
    words = WORDS.replace("PointMass-v0", "ClosedForm-v0")
    with pytest.raises(SystemExit):
        fasttd3.main([*words.split(), "--init-from", str(source), "--run-dir", str(tmp_path / "run")])
    assert "its networks do not fit ClosedForm-v0" in capsys.readouterr().err


@pytest.mark.skipif("FASTTD3_REFERENCE" not in os.environ, reason="needs FASTTD3_REFERENCE, a checkout of FastTD3")
@pytest.mark.parametrize("place", PLACES)
def test_files_of_their_own_code(place: str, tmp_path: Path) -> None:
    code = speed.load_code(Path(os.environ["FASTTD3_REFERENCE"]))
    sizes = {"n_obs": OBS, "n_act": ACTION, "hidden_dim": HIDDEN, "sim_type": place, "sim_dimension": 4, "seq_len": 3}
    actor = code.nets.Actor(num_envs=4, init_scale=0.5, **sizes)
    critic = code.nets.Critic(num_atoms=ATOMS, v_min=-20.0, v_max=30.0, **sizes)
    norm = code.utils.EmpiricalNormalization(shape=OBS, device="cpu")
    norm(2 * torch.randn(100, OBS) + 1)
    args = SimpleNamespace(**File(place).content["args"])
    code.utils.save_params(7, actor, critic, critic, norm, norm, args, str(tmp_path / "models" / "theirs.pt"))
    published = read_fasttd3(tmp_path / "models" / "theirs.pt")
    settings = fasttd3.Args(
        env_id="PointMass-v0", device="cpu", size="small", amp="off", num_envs=4, **published.settings
    )
    agent, *_ = fasttd3.build(fasttd3.resolve(settings))
    agent.modules.load_state_dict({**agent.modules.state_dict(), **published.modules})
    obs, action = torch.randn(50, OBS), torch.rand(50, ACTION)
    norm.eval()
    with torch.no_grad():
        torch.testing.assert_close(agent.act(obs), actor(norm(obs)), rtol=1e-5, atol=1e-5)
        for mine, theirs in zip(agent.critic(agent.obs_norm(obs), action), critic(norm(obs), action), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


# ---- CleanRL ---------------------------------------------------------------------------------------------------------


def stack(*sizes: int) -> nn.Sequential:
    """Return their layers: affine maps with a tanh between each two."""
    return nn.Sequential(*[part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.Tanh())][:-1])


class Continuous(nn.Module):
    """Their `ppo_continuous_action.py`."""

    def __init__(self, obs: int, actions: int, actor: tuple[int, ...], critic: tuple[int, ...]) -> None:
        super().__init__()
        self.critic, self.actor_mean = stack(obs, *critic, 1), stack(obs, *actor, actions)
        self.actor_logstd = nn.Parameter(torch.randn(1, actions))


class Plain(nn.Module):
    """Their `ppo.py`."""

    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.critic, self.actor = stack(obs, 64, 64, 1), stack(obs, 64, 64, actions)


class Images(nn.Module):
    """Their `ppo_atari_envpool.py`, which divides by 255 outside of the network."""

    def __init__(self, channels: int, features: int, actions: int) -> None:
        super().__init__()
        sizes = (channels, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)
        convolutions = [part for size in sizes for part in (nn.Conv2d(*size), nn.ReLU())]
        self.network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(features, 48), nn.ReLU())
        self.actor, self.critic = nn.Linear(48, actions), nn.Linear(48, 1)


PPO_WORDS = "--device cpu --num-envs 4 --num-steps 8 --num-minibatches 2 --eval-every 0 --total-timesteps 32 --amp off"
HIDDEN_LAYERS = [((64, 64), (64, 64)), ((24,), (24,)), ((32, 16), (16,))]


def started(words: str, source: Path) -> ppo.PPO:
    """Return an agent that starts from a file."""
    argv = [*PPO_WORDS.split(), *words.split(), "--init-from", str(source)]
    args = ppo.resolve(origin.parse(ppo.Args, ppo.presets, argv).args)
    agent, env, _ = ppo.build(args)
    assert origin.start_from(args, agent, env) is not None
    return agent


def saved(agent: nn.Module, folder: Path) -> Path:
    path = folder / "theirs.cleanrl_model"
    torch.save(agent.state_dict(), path)
    return path


@pytest.mark.parametrize("hidden", HIDDEN_LAYERS, ids=["both", "one", "unlike"])
@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_cleanrls_actions_are_the_same_in_the_tasks_units(
    backend: str, hidden: tuple[tuple[int, ...], tuple[int, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    theirs = Continuous(3, 1, *hidden)
    agent = started(f"--env-id Pendulum-v1 --backend {backend}", saved(theirs, tmp_path))  # torques within [-2, 2]
    assert "has no statistics of observations: they start afresh" in capsys.readouterr().err
    obs = torch.randn(200, 3)
    with torch.no_grad():
        policy, value = agent(obs, obs)
        torch.testing.assert_close(2 * policy.mean, theirs.actor_mean(obs), rtol=1e-5, atol=1e-5)
        wide = (policy.log_std.exp() * 2).expand(200, 1)
        torch.testing.assert_close(wide, theirs.actor_logstd.exp().expand(200, 1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(value, theirs.critic(obs)[:, 0], rtol=1e-5, atol=1e-5)


def test_ranges_with_a_centre(tmp_path: Path) -> None:
    theirs = Continuous(6, 2, (64, 64), (64, 64))
    agent = started("--env-id PointMass-v0", saved(theirs, tmp_path))  # has [-1, 1] itself
    obs = torch.randn(50, 6)
    with torch.no_grad():
        torch.testing.assert_close(agent(obs, obs)[0].mean, theirs.actor_mean(obs), rtol=1e-5, atol=1e-5)
        state = agent.modules.state_dict()
        lopsided = SimpleNamespace(action_bounds=(torch.tensor([-1.0, 2.0]).numpy(), torch.tensor([3.0, 2.5]).numpy()))
        agent.modules.load_state_dict(origin.in_range(state, lopsided))  # type: ignore[arg-type]
        policy = agent(obs, obs)[0]
        native = torch.tensor([1.0, 2.25]) + torch.tensor([2.0, 0.25]) * policy.mean
        torch.testing.assert_close(native, theirs.actor_mean(obs), rtol=1e-5, atol=1e-4)
        wide = policy.log_std[0].exp() * torch.tensor([2.0, 0.25])
        torch.testing.assert_close(wide, theirs.actor_logstd[0].exp(), rtol=1e-5, atol=1e-5)


def test_cleanrls_choices_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = Plain(4, 2)
    agent = started("--env-id CartPole-v1", saved(theirs, tmp_path))
    assert "start afresh" not in capsys.readouterr().err
    obs = torch.randn(200, 4)
    with torch.no_grad():
        policy, value = agent(obs, obs)
        torch.testing.assert_close(policy.log_probs, theirs.actor(obs).log_softmax(-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(value, theirs.critic(obs)[:, 0], rtol=1e-5, atol=1e-5)


def test_cleanrls_choices_from_images_are_the_same(tmp_path: Path) -> None:
    env = ppo.envs.make("Pixels-v0", 4, 1, torch.device("cpu"))
    channels, *sides = env.obs_space.shape
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        sides = [(side - kernel) // stride + 1 for side in sides]
    theirs = Images(channels, 64 * sides[0] * sides[1], int(env.action_space.n))  # type: ignore[union-attr]
    agent = started("--env-id Pixels-v0", saved(theirs, tmp_path))
    obs = torch.randint(0, 256, (32, *env.obs_space.shape), dtype=torch.uint8)
    with torch.no_grad():
        policy, value = agent(obs, obs)
        hidden = theirs.network(obs / 255)
        torch.testing.assert_close(policy.log_probs, theirs.actor(hidden).log_softmax(-1), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(value, theirs.critic(hidden)[:, 0], rtol=1e-5, atol=1e-5)


def test_a_run_goes_on_from_cleanrls_file(tmp_path: Path) -> None:
    folder = tmp_path / "Pendulum-v1__ppo_continuous_action__1__1700000000"
    folder.mkdir()
    source = saved(Continuous(3, 1, (64, 64), (64, 64)), folder)
    words = f"{PPO_WORDS} --env-id Pendulum-v1 --init-from {source} --run-dir {tmp_path / 'run'} --quiet"
    assert ppo.main(words.split()) == 0
    noted = json.loads((tmp_path / "run" / "manifest.json").read_text())["init_from"]
    assert noted["path"] == str(source) and noted["task"] == "Pendulum-v1" and noted["step"] == 0
    source.unlink()
    assert ppo.main(["--resume", str(tmp_path / "run"), "--total-timesteps", "64", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: tuple(stack(3, 4, 1).state_dict() for _ in range(3)), "holds 3 networks, as CleanRL's TD3 and DDPG"),
        (lambda: {"a": 1}, "is no checkpoint of CleanRL's PPO"),
        (lambda: stack(3, 4, 1).state_dict(), "CleanRL's PPO has no 0.bias"),
        (lambda: {**Plain(3, 2).state_dict(), "critic.1.weight": torch.ones(1)}, "critic has layers"),
        (lambda: {"critic.0.weight": torch.ones(1, 3)}, "actor has layers"),
        (lambda: [torch.ones(2)], "is no checkpoint of CleanRL's PPO"),
        (lambda: {0: torch.ones(2)}, "has no 0 of that type"),
        (lambda: {name: x.to(torch.complex64) for name, x in Plain(3, 2).state_dict().items()}, "of that type"),
        (lambda: {name: x.to("meta") for name, x in Plain(3, 2).state_dict().items()}, "is no dense tensor"),
        (lambda: Continuous(3, 1, (), ()).state_dict(), "must have two or more"),
        (lambda: {**Plain(3, 2).state_dict(), "actor.2.weight": torch.ones(64)}, r"actor\.2 has weights of \(64,\)"),
        (lambda: {**Plain(3, 2).state_dict(), "actor.0.weight": torch.tensor(1.0)}, r"actor\.0 has weights of \(\)"),
        (lambda: {**Plain(3, 2).state_dict(), "actor.0.bias": torch.ones(3)}, r"and a bias of \(3,\)"),
        (lambda: {**Continuous(3, 1, (8,), (8,)).state_dict(), "actor_logstd": torch.ones(2)}, "has 2 numbers"),
        (
            lambda: {**Continuous(3, 1, (8,), (8,)).state_dict(), "actor.0.weight": torch.ones(2, 2)},
            "is no layer of it",
        ),
        (lambda: {**Images(3, 64, 2).state_dict(), "network.7.weight": torch.tensor(1.0)}, r"network\.7 has weights"),
        (
            lambda: {**Images(3, 64, 2).state_dict(), "network.2.weight": torch.ones(64, 32, 5, 5)},
            r"network\.2 has weights of \(64, 32, 5, 5\)",
        ),
        (lambda: {**Images(3, 64, 2).state_dict(), "network.9.weight": torch.ones(1)}, "network.9.weight is no layer"),
        (lambda: Plain(4, 2).state_dict() | {"critic.4.bias": torch.tensor([torch.nan])}, "is not finite"),
        (lambda: Continuous(5, 1, (8,), (8,)).state_dict(), "its own task, of 5 observations"),
        (lambda: {**Plain(3, 2).state_dict(), "evil": Evil()}, "cannot be read"),
    ],
)
def test_what_is_not_cleanrls_ppo_is_one_line(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL_DIR", str(tmp_path / "evil"))
    torch.save(content(), tmp_path / "theirs.pt")
    argv = [*PPO_WORDS.split(), "--env-id", "Pendulum-v1", "--init-from", str(tmp_path / "theirs.pt")]
    if "finite" in message:
        argv[argv.index("Pendulum-v1")] = "CartPole-v1"
    with pytest.raises(SystemExit) as stop:
        ppo.main([*argv, "--run-dir", str(tmp_path / "run")])
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and re.search(message, error), error
    assert not (tmp_path / "run").exists() and not (tmp_path / "evil").exists()


@pytest.mark.skipif("CLEANRL_REFERENCE" not in os.environ, reason="needs CLEANRL_REFERENCE, a checkout of CleanRL")
@pytest.mark.parametrize(("script", "task"), [("ppo_continuous_action", "Pendulum-v1"), ("ppo", "CartPole-v1")])
def test_files_of_cleanrls_own_code(script: str, task: str, tmp_path: Path) -> None:
    code = runpy.run_path(str(Path(os.environ["CLEANRL_REFERENCE"]) / "cleanrl" / f"{script}.py"), run_name="theirs")
    env = ppo.envs.make(task, 4, 1, torch.device("cpu"), "gymnasium")
    theirs = code["Agent"](env._vector)  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    agent = started(f"--env-id {task}", saved(theirs, tmp_path))
    obs = torch.randn(100, *env.obs_space.shape)
    with torch.no_grad():
        policy, value = agent(obs, obs)
        torch.testing.assert_close(value, theirs.get_value(obs)[:, 0], rtol=1e-5, atol=1e-5)
        action = theirs.get_action_and_value(obs)[0]
        own = action / 2 if script == "ppo_continuous_action" else action
        log_prob = policy.log_prob(own) - (math.log(2) if script == "ppo_continuous_action" else 0)
        expected = theirs.get_action_and_value(obs, action)[1]
        torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-4)
