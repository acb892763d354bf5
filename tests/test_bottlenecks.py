"""What can take SEM's place, against closed forms and loops over samples, copies against single ones, and agents."""

import hashlib
import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor, nn

import envs
from agents import export, fastsac, fasttd3, ppo, pqn
from networks.bottlenecks import FTA, VQ, WITH_TEMPERATURE, Bottleneck, CReLU, GumbelST, Kind, UnitLength, bottleneck
from networks.critics import CategoricalCritics
from networks.diagnostics import describe_copies, describe_torso
from networks.layers import BatchedLinear, layer_norm, linear, orthogonal_
from networks.sem import SEM, SEMConfig, entropy, simplicial
from networks.torso import mlp_torso

Q = 3
KINDS: tuple[Kind, ...] = get_args(Kind)
every_kind = pytest.mark.parametrize("kind", KINDS)


def config(kind: Kind, **changes: Any) -> Bottleneck:
    return replace(Bottleneck(4, 3, kind=kind), **changes)


def make(kind: Kind, copies: int | None = None, seed: int = 0, **changes: Any) -> nn.Module:
    """A block of 5 inputs whose parameters are all random."""
    torch.manual_seed(seed)
    block, _ = bottleneck(config(kind, **changes), 5, copies)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return block


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def affine(block: nn.Module, x: Tensor) -> np.ndarray:
    """What the block's linear layer makes of x."""
    layer = block.linear if hasattr(block, "linear") else block[0]
    return array(x) @ array(layer.weight).T + array(layer.bias)


def normed(h: np.ndarray, norm: nn.Module) -> np.ndarray:
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    return h * array(norm.weight) + array(norm.bias)


def softmax(h: np.ndarray) -> np.ndarray:
    e = np.exp(h - h.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ---- each is its formula ---------------------------------------------------------------------------------------------


def sem(block: nn.Module, x: Tensor) -> np.ndarray:
    return softmax(normed(affine(block, x), block.norm).reshape(len(x), 4, 3)).reshape(len(x), 12)


def layernorm(block: nn.Module, x: Tensor) -> np.ndarray:
    return normed(affine(block, x), block[1]).clip(0)


def narrow(block: nn.Module, x: Tensor) -> np.ndarray:
    return affine(block, x).clip(0)


def single(block: nn.Module, x: Tensor) -> np.ndarray:
    return softmax(normed(affine(block, x), block.norm))


def gumbel_st(block: nn.Module, x: Tensor) -> np.ndarray:
    """As it acts: the likeliest vertex of each group."""
    return np.eye(3)[normed(affine(block, x), block.norm).reshape(len(x), 4, 3).argmax(-1)].reshape(len(x), 12)


def vq(block: nn.Module, x: Tensor) -> np.ndarray:
    codes, rows = array(block.codes), []
    for row in normed(affine(block, x), block.norm):
        rows.append([min(codes, key=lambda code: float(((code - part) ** 2).sum())) for part in row.reshape(4, 3)])
    return np.array(rows).reshape(len(x), 12)


def crelu(block: nn.Module, x: Tensor) -> np.ndarray:
    h = affine(block, x)
    return np.concatenate([h.clip(0), (-h).clip(0)], -1)


def l2(block: nn.Module, x: Tensor) -> np.ndarray:
    h = affine(block, x).clip(0)
    return h / np.linalg.norm(h, axis=-1, keepdims=True).clip(1e-12)


def fta(block: nn.Module, x: Tensor) -> np.ndarray:
    """Tile by tile, as in equation 4 of the paper: 1 - I(max(c - z, 0) + max(z - delta - c, 0))."""
    rows = []
    for row in 1.5 * np.tanh(affine(block, x) / 1.5):
        away = [max(c - z, 0) + max(z - 1 - c, 0) for z in row for c in (-1.5, -0.5, 0.5)]
        rows.append([1 - (d if d <= 1 else 1) for d in away])
    return np.array(rows)


FORMULAS: dict[Kind, Callable[[nn.Module, Tensor], np.ndarray]] = {
    **{"sem": sem, "layernorm": layernorm, "narrow": narrow, "single": single, "gumbel-st": gumbel_st},
    **{"vq": vq, "crelu": crelu, "l2": l2, "fta": fta},
}


@every_kind
def test_a_block_is_its_formula(kind: Kind) -> None:
    block, x = make(kind), inputs(50, 5)
    with torch.no_grad():
        out = block(x)
    assert out.shape == (50, bottleneck(config(kind), 5)[1]) and out.dtype == torch.float32
    np.testing.assert_allclose(array(out), FORMULAS[kind](block, x), atol=5e-6)


def test_widths_are_those_of_sem_but_for_crelu() -> None:
    assert {kind: bottleneck(config(kind), 5)[1] for kind in KINDS} == {**dict.fromkeys(KINDS, 12), "crelu": 24}


@pytest.mark.parametrize("shared", [True, False])
@every_kind
def test_copies_are_separate_blocks(kind: Kind, shared: bool) -> None:
    block = make(kind, Q)
    x = inputs(7, 5) if shared else inputs(Q, 7, 5)
    with torch.no_grad():
        out = block(x)
        assert out.shape == (Q, 7, bottleneck(config(kind), 5)[1])
        for q in range(Q):
            alone = make(kind)
            for mine, theirs in zip(alone.parameters(), block.parameters(), strict=True):
                part = theirs[q]
                mine.copy_(part.T if mine.dim() == 2 and kind_of(alone, mine) else part.reshape(mine.shape))
            torch.testing.assert_close(out[q], alone(x if shared else x[q]), atol=2e-6, rtol=1e-5)


def kind_of(block: nn.Module, parameter: Tensor) -> bool:
    """Whether it is the weight of a linear layer, which single ones hold the other way round."""
    return any(isinstance(layer, nn.Linear) and layer.weight is parameter for layer in block.modules())


@every_kind
def test_no_gradient_flows_between_copies(kind: Kind) -> None:
    torch.manual_seed(0)
    block, x = make(kind, Q), inputs(Q, 16, 5).requires_grad_()
    gradients = torch.autograd.grad(block(x)[1].square().sum(), [x, *block.parameters()], allow_unused=True)
    for gradient in gradients[: None if kind != "vq" else 1]:  # codes are learned in every copy, whatever it is for
        assert gradient is not None and gradient[1].isfinite().all()
        assert gradient[0].abs().max() == gradient[2].abs().max() == 0
    assert kind == "vq" or any(gradient[1].abs().max() > 0 for gradient in gradients[1:])


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("copies", [None, Q])
@every_kind
def test_every_parameter_is_learned(kind: Kind, copies: int | None, amp: bool) -> None:
    torch.manual_seed(0)
    block, width = bottleneck(config(kind, vertices=5), 5, copies)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        loss = (block(inputs(64, 5)) * inputs(width)).float().sum()
    for gradient in torch.autograd.grad(loss, list(block.parameters())):
        assert gradient.isfinite().all() and gradient.abs().max() > 0


# ---- what is particular to each --------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True])
def test_narrow_is_an_ordinary_layer_of_the_width_of_sem(norm: bool) -> None:
    """Where L*V is the width of the layer that it replaces, all of the network is the plain one."""
    x = inputs(7, 5)
    torch.manual_seed(0)
    block, _ = mlp_torso(5, (16, 12), config("narrow"), None, "silu", norm)
    torch.manual_seed(0)
    plain, _ = mlp_torso(5, (16, 12), None, None, "silu", norm)
    assert torch.equal(block(x), plain(x))
    assert mlp_torso(5, (16, 99), config("narrow"), None, "silu", norm)[1] == 12


def test_layernorm_is_what_sem_is_before_its_softmax() -> None:
    x = inputs(7, 5)
    torch.manual_seed(0)
    one, _ = bottleneck(config("layernorm"), 5, activation=nn.Identity)
    torch.manual_seed(0)
    other, _ = bottleneck(config("sem"), 5)
    assert torch.equal(simplicial(one(x), 4), other(x))
    torch.manual_seed(0)
    assert [type(m) for m in bottleneck(config("layernorm"), 5, norm=True)[0]] == [nn.Linear, nn.LayerNorm, nn.ReLU]


def test_single_is_one_group() -> None:
    block = make("single", temperature=0.5)
    assert isinstance(block, SEM) and str(block.config) == "L=1 V=12 tau=0.5"
    assert block(inputs(7, 5)).sum(-1).sub(1).abs().max() < 1e-6


def test_gumbel_draws_vertices_with_the_probabilities_of_sem() -> None:
    block = make("gumbel-st")
    assert isinstance(block, GumbelST)
    x = inputs(1, 5)
    torch.manual_seed(2)
    draws = block(x.expand(20_000, 5)).detach()
    assert ((draws == 0) | (draws == 1)).all() and (draws.unflatten(-1, (4, 3)).sum(-1) == 1).all()
    expected = softmax(array(block.norm(block.linear(x))).reshape(4, 3))
    for counts, probs in zip(draws.sum(0).view(4, 3), expected, strict=True):
        assert chisquare(array(counts), 20_000 * probs).pvalue > 1e-3


def test_gumbel_has_the_gradient_of_the_softmax_that_it_drew_from() -> None:
    block, x, weight = make("gumbel-st", temperature=0.7), inputs(6, 5), inputs(6, 12, seed=2)
    torch.manual_seed(3)
    actual = torch.autograd.grad((block(x) * weight).sum(), list(block.parameters()))
    torch.manual_seed(3)
    noise = -torch.empty(6, 12).exponential_().log()
    soft = simplicial(block.norm(block.linear(x)) + noise, 4, 0.7)
    for mine, theirs in zip(actual, torch.autograd.grad((soft * weight).sum(), list(block.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_gumbel_draws_nothing_where_nothing_is_learned() -> None:
    block, x = make("gumbel-st"), inputs(64, 5)
    state = torch.get_rng_state()
    with torch.no_grad():
        acted = block(x)
    frozen = deepcopy(block).requires_grad_(False)(x)
    evaluated = block.eval()(x)
    assert torch.equal(acted, frozen) and torch.equal(acted, evaluated.detach())
    assert torch.equal(torch.get_rng_state(), state) and evaluated.requires_grad
    assert not torch.equal(block.train()(x).detach(), acted)


def test_gumbel_survives_a_draw_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x = make("gumbel-st"), inputs(6, 5)
    monkeypatch.setattr(Tensor, "exponential_", lambda self: self.fill_(1.0).index_fill_(-1, torch.tensor([1, 5]), 0.0))
    out = block(x)
    assert out.isfinite().all() and (out.detach()[:, [1, 5]] == 1).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.square().sum(), list(block.parameters())))


@pytest.mark.parametrize("copies", [None, Q])
def test_vq_learns_from_the_loss_and_from_its_codes(copies: int | None) -> None:
    """The gradient is that of the loss straight through, and of 10 * (MSE of the codes + 0.25 * MSE of features)."""
    torch.manual_seed(0)
    block = make("vq", copies)
    assert isinstance(block, VQ)
    x = inputs(9, 5).requires_grad_()
    weight = inputs(12, seed=3)
    actual = torch.autograd.grad((block(x) * weight).sum(), [x, *block.parameters()])
    features = block.norm(block.linear(x))
    own = block.norm(block.linear(x.detach()))
    code = block.nearest(features.detach())
    straight = torch.autograd.grad((features * weight).sum(), x, retain_graph=True)[0]
    torch.testing.assert_close(actual[0], straight, msg="what comes before the block does not feel the codes")
    each = [F.mse_loss(code, features.detach()) + 0.25 * F.mse_loss(own, code.detach())]
    if copies is not None:
        each = [
            F.mse_loss(code[q], features[q].detach()) + 0.25 * F.mse_loss(own[q], code[q].detach())
            for q in range(copies)
        ]
    expected = torch.autograd.grad((features * weight).sum() + 10 * sum(each), list(block.parameters()))
    for mine, theirs in zip(actual[1:], expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_vq_codes_move_to_what_they_stand_for() -> None:
    torch.manual_seed(0)
    block, _ = bottleneck(config("vq"), 5)
    x = inputs(256, 5)
    optimizer = torch.optim.Adam(block.parameters(), 0.03)

    def error() -> float:
        with torch.no_grad():
            return F.mse_loss(block(x), block.norm(block.linear(x))).item()

    before = error()
    for _ in range(100):
        optimizer.zero_grad()
        (0 * block(x).sum()).backward()  # a loss that says nothing
        optimizer.step()
    assert error() < 0.3 * before


def test_crelu_loses_nothing() -> None:
    block, x = make("crelu"), inputs(7, 5)
    assert isinstance(block, CReLU)
    positive, negative = block(x).chunk(2, -1)
    torch.testing.assert_close(positive - negative, block.linear(x))
    assert torch.equal(positive * negative, torch.zeros(7, 12)) and positive.min() >= 0 and negative.min() >= 0


def test_unit_length_but_for_nothing_at_all() -> None:
    block = make("l2")
    assert isinstance(block, UnitLength)
    out = block(inputs(50, 5))
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(50))
    with torch.no_grad():
        block.linear.bias.fill_(-1e6)  # no unit is ever active
    assert torch.equal(block(inputs(7, 5)), torch.zeros(7, 12))


def test_fta_of_known_units() -> None:
    block, _ = bottleneck(Bottleneck(1, 4, kind="fta"), 1)
    assert isinstance(block, FTA)
    with torch.no_grad():
        block.linear.weight.fill_(1.0)
        block.linear.bias.zero_()
    for unit, tiles in (
        (0.0, [0.0, 1.0, 1.0, 0.0]),  # on the border of two
        (0.25, [0.0, 0.75, 1.0, 0.25]),
        (-1.0, [1.0, 1.0, 0.0, 0.0]),
        (-1.5, [1.0, 0.5, 0.0, 0.0]),
    ):
        x = 2 * math.atanh(unit / 2)
        assert block(torch.tensor([[x]]))[0].tolist() == pytest.approx(tiles, abs=1e-6)
    assert block(torch.tensor([[1e9], [-1e9]])).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    assert block.state_dict().keys() == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("copies", [None, Q])
@pytest.mark.parametrize("kind", WITH_TEMPERATURE)
def test_a_learned_temperature_starts_as_the_fixed_one_and_moves(kind: Kind, copies: int | None) -> None:
    torch.manual_seed(0)
    fixed, _ = bottleneck(config(kind, temperature=0.5), 5, copies)
    torch.manual_seed(0)
    learned, _ = bottleneck(config(kind, temperature=0.5, learned_temperature=True), 5, copies)
    x = inputs(7, 5)
    fixed.eval(), learned.eval()
    torch.testing.assert_close(fixed(x), learned(x))
    assert learned.log_temperature.numel() == (copies or 1)
    weight = inputs(*fixed(x).shape, seed=4)
    (slope,) = torch.autograd.grad((learned(x) * weight).sum(), learned.log_temperature)
    step = 1e-2
    if kind != "gumbel-st":  # whose output is one-hot at every temperature
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                learned.log_temperature.add_(sign * step)
                ends.append((learned(x) * weight).sum())
                learned.log_temperature.sub_(sign * step)
        torch.testing.assert_close(slope.sum(), (ends[0] - ends[1]) / (2 * step), atol=1e-3, rtol=1e-2)
    assert slope.abs().min() > 0
    assert "tau=0.5, learned" in str(learned)


@pytest.mark.parametrize("copies", [None, Q])
def test_a_learned_temperature_is_reported(copies: int | None) -> None:
    torso, _ = mlp_torso(5, (8, 12), config("sem", temperature=0.5, learned_temperature=True), copies)
    assert describe_torso("actor", torso, inputs(7, 5))["sem/actor_temperature"].item() == pytest.approx(0.5)
    if copies is not None:
        with torch.no_grad():
            torso[-1].log_temperature[1] = math.log(3)
        said = describe_copies("abc", torso, inputs(7, 5))
        assert [said[f"sem/{name}_temperature"].item() for name in "abc"] == pytest.approx([0.5, 3, 0.5])


# ---- where they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [None, Q])
@every_kind
def test_in_place_of_every_hidden_layer(kind: Kind, copies: int | None) -> None:
    torch.manual_seed(0)
    torso, width = mlp_torso(5, (6, 9, 12), config(kind, position="every"), copies)
    wider = 2 if kind == "crelu" else 1
    assert len(torso) == 3 and width == wider * 12
    x = inputs(7, 5)
    for block, units in zip(torso, (6, 9, 12), strict=True):
        x = block(x)
        assert x.shape[-1] == wider * units
        if kind == "sem":
            torch.testing.assert_close(x.unflatten(-1, (-1, 3)).sum(-1), torch.ones(*x.shape[:-1], units // 3))
    last, _ = mlp_torso(5, (6, 9, 12), config(kind), copies)
    assert len(last) == 5 and [type(m) for m in last[:2]] == [nn.Linear if copies is None else BatchedLinear, nn.ReLU]


@pytest.mark.parametrize("copies", [None, Q])
@every_kind
def test_in_place_of_the_first_hidden_layer(kind: Kind, copies: int | None) -> None:
    torch.manual_seed(0)
    block, _ = bottleneck(config(kind).of_width(6), 5, copies)
    torso, width = mlp_torso(5, (6, 9, 12), config(kind, position="input"), copies)
    assert [type(m) for m in torso[1:]] == 2 * [nn.Linear if copies is None else BatchedLinear, nn.ReLU]
    assert type(torso[0]) is type(block) and width == 12
    assert {n: p.shape for n, p in torso[0].named_parameters()} == {n: p.shape for n, p in block.named_parameters()}
    only, width = mlp_torso(5, (99,), config(kind, position="input"), copies)  # the first is the last
    assert len(only) == 1 and width == mlp_torso(5, (99,), config(kind), copies)[1]


def test_codes_are_described_wherever_they_are() -> None:
    x = inputs(40, 5)
    for position, where in (("last", -1), ("every", -1), ("input", 0)):
        torso, _ = mlp_torso(5, (6, 9, 12), config("sem", position=position))
        codes = torso[:1](x) if where == 0 else torso(x)
        said = describe_torso("actor", torso, x, torso)
        assert said["sem/actor_entropy"].item() == pytest.approx(entropy(codes, codes.shape[-1] // 3).item())
        assert said["sem/actor_vertex_agreement"].item() == 1
        torso, _ = mlp_torso(5, (6, 9, 12), config("sem", position=position), 2)
        codes = torso[:1](x) if where == 0 else torso(x)
        pair = describe_copies("ab", torso, x)
        for copy, name in enumerate("ab"):
            expected = entropy(codes[copy], codes.shape[-1] // 3).item()
            assert pair[f"sem/{name}_entropy"].item() == pytest.approx(expected)


def test_layers_that_are_no_whole_number_of_groups_are_refused() -> None:
    for position in ("every", "input"):
        with pytest.raises(ValueError, match="a multiple of V=3 units wide, got 7"):
            mlp_torso(5, (7, 12), config("sem", position=position))


# ---- a temperature that moves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [None, Q])
@pytest.mark.parametrize("kind", WITH_TEMPERATURE)
def test_an_annealed_temperature_is_at_each_time_a_fixed_one(kind: Kind, copies: int | None) -> None:
    """From 4 to 1/4 by equal factors, in gradients, too."""
    torch.manual_seed(0)
    moving, _ = bottleneck(config(kind, temperature=4.0, end_temperature=0.25), 5, copies)
    assert isinstance(moving, SEM) and [n for n, _ in moving.named_buffers()] == ["tau"]
    x, weight = inputs(6, 5), inputs(6, 12, seed=2)
    for progress, tau in ((0.0, 4.0), (0.25, 2.0), (0.5, 1.0), (1.0, 0.25)):
        moving.anneal(progress)
        fixed, _ = bottleneck(config(kind, temperature=tau), 5, copies)
        fixed.load_state_dict({n: p for n, p in moving.state_dict().items() if n != "tau"})
        assert isinstance(moving.temperature, Tensor) and moving.temperature.item() == pytest.approx(tau, rel=1e-6)
        slopes = []
        for block in (moving, fixed):
            torch.manual_seed(1)
            out = block(x)
            slopes.append([out, *torch.autograd.grad((out * weight).sum(), list(block.parameters()))])
        for mine, theirs in zip(*slopes, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_an_annealed_temperature_is_reported_and_saved() -> None:
    torso, _ = mlp_torso(5, (8, 12), config("sem", end_temperature=0.25), 2)
    torso[-1].anneal(0.5)
    assert describe_torso("actor", torso, inputs(7, 5))["sem/actor_temperature"].item() == pytest.approx(0.5)
    said = describe_copies("ab", torso, inputs(7, 5))
    assert said["sem/a_temperature"].item() == said["sem/b_temperature"].item() == pytest.approx(0.5)
    other, _ = mlp_torso(5, (8, 12), config("sem", end_temperature=0.25), 2)
    other.load_state_dict(torso.state_dict())
    assert torch.equal(other(inputs(7, 5)), torso(inputs(7, 5)))


@pytest.mark.parametrize("changes", [{"end_temperature": -1.0}, {"end_temperature": 2.0, "learned_temperature": True}])
def test_a_temperature_that_cannot_end_there_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="must be above 0, and not learned"):
        config("sem", **changes)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(WITH_TEMPERATURE)))
@pytest.mark.parametrize("changes", [{"temperature": 0.5}, {"learned_temperature": True}, {"end_temperature": 0.5}])
def test_a_temperature_of_what_has_none_is_refused(kind: Kind, changes: dict) -> None:
    with pytest.raises(ValueError, match=f"{kind} has no temperature"):
        config(kind, **changes)


def test_names() -> None:
    assert str(Bottleneck(2, 64)) == str(SEMConfig(2, 64)) == "L=2 V=64 tau=1"
    assert str(Bottleneck(2, 64, kind="vq", position="every")) == "vq L=2 V=64, every layer"
    assert str(Bottleneck(2, 64, 0.5, True, kind="gumbel-st")) == "gumbel-st L=2 V=64 tau=0.5, learned"
    assert str(Bottleneck(2, 64, 2.0, False, 0.5, position="input")) == "L=2 V=64 tau=2 to 0.5, first layer"


# ---- in agents -------------------------------------------------------------------------------------------------------


AGENTS = {"fasttd3": fasttd3, "fastsac": fastsac, "ppo": ppo, "pqn": pqn}
CLASSES = {"fasttd3": fasttd3.FastTD3, "fastsac": fastsac.FastSAC, "ppo": ppo.PPO, "pqn": pqn.PQN}
SMALL = {
    **{"device": "cpu", "num_envs": 4, "actor_hidden": (16, 16), "critic_hidden": (16, 16), "amp": "off"},
    **{"sem_actor_groups": 4, "sem_actor_vertices": 4, "sem_critic_groups": 4, "sem_critic_vertices": 4},
}


def agent_of(name: str, task: str = "PointMass-v0", seed: int = 3, **changes: Any) -> Any:
    task = "ClosedFormDiscrete-v0" if name == "pqn" else task
    known = {field.name for field in fields(AGENTS[name].Args)}
    settings = {key: value for key, value in SMALL.items() if key in known}
    args = AGENTS[name].Args(**{**settings, "env_id": task, **changes})
    torch.manual_seed(seed)
    return CLASSES[name](args, envs.make(task, args.num_envs, 0))


def digest(parameters: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for x in parameters:
        found.update(x.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def plain_layer(fan_in: int, fan_out: int, copies: int | None, norm: bool) -> list[nn.Module]:
    """A linear layer, and what may follow it; activations have no parameters."""
    return [linear(fan_in, fan_out, copies), *([layer_norm(fan_out, copies)] if norm else [])]


def plain_construction(name: str, sem: bool) -> list[Tensor]:
    """The parameters of an agent on the point mass, in their order, without torsos, blocks or configs."""
    torch.manual_seed(3)
    if name == "pqn":
        trunk = nn.Sequential(*plain_layer(1, 16, None, True), *plain_layer(16, 16, None, True))
        head = nn.Linear(16, 3)
        orthogonal_(trunk, math.sqrt(2))
        orthogonal_(head, math.sqrt(2))
        return [*trunk.parameters(), *head.parameters()]
    env = envs.make("PointMass-v0", 4, 0)
    (obs,), (action,) = env.obs_space.shape, env.action_space.shape
    if name == "ppo":
        trunk = nn.Sequential(*plain_layer(obs, 16, 2, False), *plain_layer(16, 16, 2, sem))
        orthogonal_(trunk, math.sqrt(2))
        actor = nn.Linear(16, action)
        orthogonal_(actor, 0.01)
        value = nn.Linear(16, 1)
        orthogonal_(value, 1.0)
        return [*trunk.parameters(), torch.zeros(action), *actor.parameters(), *value.parameters()]
    norm, outputs = name == "fastsac", action * (2 if name == "fastsac" else 1)
    hidden = nn.Sequential(*plain_layer(obs, 16, None, norm), *plain_layer(16, 16, None, norm or sem))
    head = nn.Linear(16, outputs)
    if name == "fasttd3":
        nn.init.normal_(head.weight, std=0.01)
    else:
        nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    critic_layers = plain_layer(obs + action, 16, 2, norm) + plain_layer(16, 16, 2, norm or sem)
    critic = nn.Sequential(*critic_layers, BatchedLinear(16, 101, 2))
    return [*hidden.parameters(), *head.parameters(), *critic.parameters(), *critic.parameters()]  # and the target


@pytest.mark.parametrize("words", [{}, {"bottleneck": "relu"}, {"sem": True}, {"bottleneck": "sem"}])
@pytest.mark.parametrize("name", AGENTS)
def test_without_flags_networks_are_those_of_a_plain_construction(name: str, words: dict) -> None:
    plain = plain_construction(name, "sem" in words or words.get("bottleneck") == "sem")
    agent = agent_of(name, **words)
    assert digest(agent.modules.parameters()) == digest(plain)
    assert sum(x.numel() for x in agent.modules.parameters()) == sum(x.numel() for x in plain)


@pytest.mark.parametrize("words", [{}, {"sem": True}])
@pytest.mark.parametrize("name", AGENTS)
def test_another_seed_or_another_block_is_another_hash(name: str, words: dict) -> None:
    digests = [digest(agent_of(name, **{**words, **more}).modules.parameters()) for more in ({}, {"seed": 4})]
    digests += [digest(agent_of(name, bottleneck=kind).modules.parameters()) for kind in ("vq", "crelu", "fta")]
    assert len(set(digests)) == 5


def blocks_of(module: nn.Module) -> set[str]:
    """Kinds of what stands in for hidden layers, by what is particular to them."""
    particular = {SEM: "sem", GumbelST: "gumbel-st", VQ: "vq", CReLU: "crelu", UnitLength: "l2", FTA: "fta"}
    return {particular[type(m)] for m in module.modules() if type(m) in particular}


@pytest.mark.parametrize("kind", ["sem", "gumbel-st", "vq", "crelu", "l2", "fta"])
@pytest.mark.parametrize("name", [name for name in AGENTS if name != "pqn"])
def test_switches_say_in_which_network(name: str, kind: str) -> None:
    for actor, critic in ((True, True), (True, False), (False, True), (False, False)):
        agent = agent_of(name, "PointMassPrivileged-v0", bottleneck=kind, sem_actor=actor, sem_critic=critic)
        assert blocks_of(agent.actor) == ({kind} if actor else set())
        assert blocks_of(agent.critic) == ({kind} if critic else set())
        assert str(AGENTS[name].sem_configs(agent.args)).count("kind=") == actor + critic


@every_kind
def test_the_pair_of_ppo_and_each_alone_are_the_same(kind: Kind) -> None:
    """Actor and critic in one batched product, against two networks with the same weights."""
    pair = agent_of("ppo", bottleneck=kind)
    assert pair.paired and len(pair.trunk)
    alone, _ = mlp_torso(pair.trunk[0].weight.shape[1], (16, 16), ppo.sem_configs(pair.args)[0], None, "elu")
    exported = export.first_copy(deepcopy(pair.trunk))
    assert exported.state_dict().keys() == alone.state_dict().keys()
    alone.load_state_dict({name: x.view_as(alone.state_dict()[name]) for name, x in exported.state_dict().items()})
    obs = inputs(9, pair.trunk[0].weight.shape[1])
    with torch.no_grad():
        both = pair.features(obs, obs)
        torch.testing.assert_close(both[0], alone(obs), atol=2e-6, rtol=1e-5)
        assert both[1].shape == both[0].shape
        assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_critics_that_an_actor_climbs_do_not_teach_it_their_codes() -> None:
    """The gradient of the actor is that of the value alone, whatever the codes of the critics still have to learn."""
    torch.manual_seed(0)
    critics = CategoricalCritics(4, 2, (16, 12), 5, -1.0, 1.0, config("vq"))
    obs, action = inputs(7, 4), inputs(7, 2, seed=2).requires_grad_()
    value = critics.value(critics(obs, action)).sum()
    (mine,) = torch.autograd.grad(value, action)
    block = critics.torso[-1]
    features = block.norm(block.linear(critics.torso[:-1](torch.cat([obs, action], -1))))
    straight = features + (block.nearest(features) - features).detach()
    (expected,) = torch.autograd.grad(critics.value(critics.head(straight)).sum(), action)
    torch.testing.assert_close(mine, expected)
