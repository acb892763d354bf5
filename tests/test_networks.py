"""Networks against NumPy in float64, against torch's own modules bit for bit, and against brute force."""

import io
import math
from collections.abc import Callable, Sequence
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.distributions as td
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor, nn

from networks.actors import (
    Categorical,
    CategoricalActor,
    DeterministicActor,
    Gaussian,
    GaussianActor,
    SquashedGaussian,
    SquashedGaussianActor,
)
from networks.critics import CategoricalCritics, DiscreteCritic, ScalarCritics, ValueCritic, project
from networks.layers import BatchedLayerNorm, BatchedLinear, float32, orthogonal_
from networks.normalize import RewardScale, RunningNorm
from networks.sem import SEM, SEMConfig, entropy, simplicial
from networks.torso import Activation, Pixels, mlp_torso, nature_cnn

Q = 3
GRID = SEMConfig(groups=4, vertices=3)


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def shake(module: nn.Module) -> nn.Module:
    """Give every parameter a random value, so that no gain of 1 and no bias of 0 hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


def random_probs(*shape: int, seed: int = 0) -> Tensor:
    return torch.softmax(2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), -1)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def gradients(out: Tensor, *to: Tensor | nn.Module) -> list[Tensor]:
    """Of a scalar, with respect to tensors and to all parameters of modules, in order."""
    leaves = [leaf for x in to for leaf in (x.parameters() if isinstance(x, nn.Module) else [x])]
    return list(torch.autograd.grad(out, leaves))


# ---- the SEM block ---------------------------------------------------------------------------------------------------


def sem_in_numpy(x: np.ndarray, parameters: Sequence[np.ndarray], cfg: SEMConfig) -> np.ndarray:
    """The block as the paper writes it, for one copy: `parameters` are weight [in, L*V], bias, gain and shift."""
    weight, bias, gain, shift = parameters
    h = x @ weight + bias
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5) * gain + shift
    h = h.reshape(len(x), cfg.groups, cfg.vertices) / cfg.temperature
    e = np.exp(h - h.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)).reshape(len(x), -1)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
@pytest.mark.parametrize("copies", [None, 1, Q])
def test_sem_is_the_formula(temperature: float, copies: int | None) -> None:
    torch.manual_seed(0)
    cfg = SEMConfig(4, 3, temperature)
    block = shake(SEM(5, cfg, copies))
    parameters = [array(p) for p in block.parameters()]
    if copies is None:
        x = torch.randn(1, 7, 5)
        out = block(x[0])[None]
        parameters = [p.T[None] for p in parameters]
    else:
        x = torch.randn(copies, 7, 5)
        out = block(x)
    for q in range(copies or 1):
        expected = sem_in_numpy(array(x[q]), [p[q] for p in parameters], cfg)
        np.testing.assert_allclose(array(out[q]), expected, atol=2e-6)


def test_sem_equals_torch_modules_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = shake(SEM(5, SEMConfig(2, 16)))
    literal = nn.Sequential(
        nn.Linear(5, 32), nn.LayerNorm(32), nn.Unflatten(-1, (2, 16)), nn.Softmax(-1), nn.Flatten(-2, -1)
    )
    for theirs, mine in zip(literal.parameters(), block.parameters(), strict=True):
        theirs.data.copy_(mine)
    x, weight = torch.randn(6, 5), torch.randn(6, 32)
    expected = literal(x), *gradients((literal(x) * weight).sum(), literal)
    assert all(each.abs().max() > 0 for each in expected)
    torch.testing.assert_close((block(x), *gradients((block(x) * weight).sum(), block)), expected)
    monkeypatch.setattr("networks.sem.suits", lambda *_: False)
    by_torch = block(x), *gradients((block(x) * weight).sum(), block)
    for mine, reference in zip(by_torch, expected, strict=True):
        assert torch.equal(mine, reference)  # groups of 16 or more: the same kernel, so the same bits


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("rows", [2, 1024])
@pytest.mark.parametrize("spread", [1.0, 30.0])  # of gains and biases
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("copies", [None, Q])
@pytest.mark.parametrize("groups", [4, 32])  # groups of 8 go another way in torch
def test_block_on_a_cpu_equals_norm_and_softmax_in_float64(
    by_torch: bool,
    rows: int,
    spread: float,
    learned: bool,
    copies: int | None,
    groups: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by_torch:
        monkeypatch.setattr("networks.sem.suits", lambda *_: False)
    torch.manual_seed(0)
    block = shake(SEM(5, SEMConfig(groups, 256 // groups, 0.7, learned), copies))
    with torch.no_grad():
        block.norm.weight *= spread
        block.norm.bias *= spread
    x = torch.randn(*([] if copies is None else [copies]), rows, 5, requires_grad=True)
    weight = torch.randn(*x.shape[:-1], 256)
    out = block(x)
    actual = gradients((out * weight).sum(), x, block)

    exact = deepcopy(block).double()
    x64 = x.detach().double().requires_grad_()
    normed = F.layer_norm(exact.linear(x64), [256], eps=1e-5) * exact.norm.weight + exact.norm.bias
    codes = torch.softmax((normed / exact.temperature).unflatten(-1, (groups, -1)), -1).flatten(-2)
    torch.testing.assert_close(out.double(), codes, atol=2e-6 * spread, rtol=0)
    for mine, reference in zip(actual, gradients((codes * weight).sum(), x64, exact), strict=True):
        assert reference.abs().max() > 0
        assert (mine - reference).abs().max() < 1e-4 * spread * reference.abs().max()  # logits of 300 lose digits


def test_block_on_a_cpu_under_autocast_is_within_bfloat16_of_itself() -> None:
    torch.manual_seed(0)
    block = shake(SEM(5, SEMConfig(4, 64), 2))
    x, weight = torch.randn(2, 1024, 5, requires_grad=True), torch.randn(2, 1024, 256)
    plain = gradients((block(x) * weight).sum(), x, block)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
        low = gradients((out * weight).sum(), x, block)
    assert (out - block(x)).abs().max() < 0.1
    for a, b in zip(low, plain, strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.03 * b.norm()


def test_gradients_by_the_input_alone() -> None:
    torch.manual_seed(0)
    block = shake(SEM(5, SEMConfig(4, 64), 2))
    x, weight = torch.randn(2, 1024, 5, requires_grad=True), torch.randn(2, 1024, 256)
    (expected, *_) = gradients((block(x) * weight).sum(), x, block)
    block.requires_grad_(False)
    assert torch.equal(gradients((block(x) * weight).sum(), x)[0], expected)


def test_rows_do_not_depend_on_the_way_they_are_computed() -> None:
    torch.manual_seed(0)
    block = shake(SEM(5, SEMConfig(4, 64)))
    x = torch.randn(1024, 5)
    pieces = torch.cat([block(piece) for piece in x.split(2)])
    torch.testing.assert_close(block(x), pieces, atol=1e-6, rtol=1e-5)
    compiled = simplicial(block.norm(block.linear(x)), 4)  # what a compiler and a GPU get
    torch.testing.assert_close(block(x), compiled, atol=1e-6, rtol=1e-5)
    assert block(x[0]).shape == (256,) and block(x[None, None]).shape == (1, 1, 1024, 256)


def test_copies_of_a_block_take_shared_or_separate_inputs() -> None:
    torch.manual_seed(0)
    block = shake(SEM(5, GRID, Q))
    x = torch.randn(7, 5)
    assert torch.equal(block(x), block(x.expand(Q, 7, 5)))
    assert block(x).shape == (Q, 7, 12)
    assert not torch.allclose(block(x)[0], block(x)[1], atol=1e-2)


@pytest.mark.parametrize("copies", [None, Q])
@pytest.mark.parametrize("amp", [False, True])
def test_groups_sum_to_one_and_codes_are_float32(copies: int | None, amp: bool) -> None:
    torch.manual_seed(0)
    block = shake(SEM(5, SEMConfig(8, 32), copies))
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        out = block(torch.randn(64, 5))
    assert out.dtype == torch.float32 and out.min() >= 0
    total = out.unflatten(-1, (8, 32)).sum(-1)
    assert (total - 1).abs().max() < 1e-6  # a softmax in bfloat16 is off by 1e-3


def test_simplicial_normalises_contiguous_groups_alone() -> None:
    x = torch.tensor([[0.0, 0.0, 5.0, 5.0, -9.0, -9.0]])
    assert torch.equal(simplicial(x, 3), torch.full((1, 6), 0.5))
    moved = x + torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0, 0.0])
    assert torch.equal(simplicial(moved, 3)[:, :4], simplicial(x, 3)[:, :4])
    assert simplicial(torch.zeros(2, 3, 6), 2).shape == (2, 3, 6)
    assert simplicial(torch.tensor([1e5, -1e5]), 1, 0.01).tolist() == [1.0, 0.0]  # no overflow


def test_temperature_divides_the_logits() -> None:
    x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(simplicial(x, 4, 0.5), simplicial(2 * x, 4))
    entropies = [float(entropy(simplicial(x, 4, tau), 4)) for tau in (0.1, 0.5, 1.0, 2.0, 10.0)]
    assert entropies == sorted(entropies) and entropies[0] < 0.5 and entropies[-1] > 0.95


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradient_of_simplicial(temperature: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    # The codes are float32 whatever comes in, so the steps of the numerical derivative are wide.
    assert torch.autograd.gradcheck(lambda y: simplicial(y, 4, temperature), x, eps=1e-2, atol=1e-3, rtol=1e-3)
    weight = torch.randn(3, 12, dtype=torch.float64)
    (actual,) = torch.autograd.grad((simplicial(x, 4, temperature) * weight).sum(), x)
    p = torch.softmax(x.detach().view(3, 4, 3) / temperature, -1)
    g = weight.view(3, 4, 3)
    closed_form = p * (g - (p * g).sum(-1, keepdim=True)) / temperature
    torch.testing.assert_close(actual, closed_form.view(3, 12), atol=1e-6, rtol=1e-6)


def test_entropy_of_known_codes() -> None:
    one_hot = F.one_hot(torch.tensor([[0, 3], [2, 2]]), 4).flatten(-2)
    assert float(entropy(one_hot, 2)) == 0
    assert float(entropy(torch.full((5, 8), 0.25), 2)) == pytest.approx(1)
    two_of_four = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.0, 0.5]])
    assert float(entropy(two_of_four, 2)) == pytest.approx(0.5)
    assert float(entropy(torch.cat([two_of_four, torch.full((1, 8), 0.25)]), 2)) == pytest.approx(0.75)
    p = array(random_probs(Q, 6, 4, 3))
    assert float(entropy(torch.tensor(p).flatten(-2), 4)) == pytest.approx(-(p * np.log(p)).sum(-1).mean() / np.log(3))


@pytest.mark.parametrize("bad", [(0, 4, 1.0), (2, 1, 1.0), (2, 4, 0.0), (2, 4, -1.0), (2, 4, math.nan)])
def test_impossible_blocks_are_refused(bad: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="simplicial embedding needs"):
        SEMConfig(*bad)


# ---- with and without the block --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [(12,), (16, 12), (16, 8, 12)])
def test_without_sem_the_actor_is_plain_torch_bit_for_bit(hidden: Sequence[int]) -> None:
    torch.manual_seed(7)
    actor = DeterministicActor(5, 2, hidden)
    torch.manual_seed(7)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip([5, *hidden], hidden, strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    head = nn.Linear(hidden[-1], 2)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    literal = nn.Sequential(*layers, head, nn.Tanh())
    assert len(list(actor.parameters())) == len(list(literal.parameters())) == 2 * len(hidden) + 2
    assert all(torch.equal(a, b) for a, b in zip(actor.parameters(), literal.parameters(), strict=True))
    x = torch.randn(9, 5)
    assert torch.equal(actor(x), literal(x))


@pytest.mark.parametrize("hidden", [(12,), (16, 8, 12)])
def test_without_sem_the_critics_are_plain_layers(hidden: Sequence[int]) -> None:
    torch.manual_seed(7)
    critics = CategoricalCritics(5, 2, hidden, 11, -1.0, 1.0, critics=Q)
    torch.manual_seed(7)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip([7, *hidden], hidden, strict=False):
        layers += [BatchedLinear(fan_in, fan_out, Q), nn.ReLU()]
    literal = nn.Sequential(*layers, BatchedLinear(hidden[-1], 11, Q))
    assert all(torch.equal(a, b) for a, b in zip(critics.parameters(), literal.parameters(), strict=True))
    obs, action = torch.randn(9, 5), torch.randn(9, 2)
    logits = critics(obs, action)
    assert logits.shape == (Q, 9, 11)
    assert torch.equal(logits, literal(torch.cat([obs, action], -1)))

    parameters = list(critics.parameters())
    for q in range(Q):  # each copy alone, from the same weights
        x = torch.cat([obs, action], -1)
        for i, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
            x = F.linear(x if i == 0 else x.relu(), weight[q].T, bias[q, 0])
        torch.testing.assert_close(logits[q], x, atol=1e-6, rtol=1e-5)


def pair(copies: int) -> tuple[nn.Module, nn.Module]:
    """Return a plain network and one with SEM, of one seed and of equal widths: an actor, or that many critics."""

    def build(sem: SEMConfig | None) -> nn.Module:
        torch.manual_seed(3)
        if copies == 1:
            return DeterministicActor(5, 2, (16, 8, 12), sem)
        return CategoricalCritics(5, 2, (16, 8, 12), 11, -1.0, 1.0, sem, copies)

    return build(None), build(GRID)


@pytest.mark.parametrize("copies", [1, Q])
def test_sem_adds_a_layer_norm_and_changes_nothing_before_it(copies: int) -> None:
    plain, with_sem = pair(copies)
    assert not any("norm" in name or "linear" in name for name, _ in plain.named_parameters())
    assert not any(isinstance(module, (SEM, nn.LayerNorm, BatchedLayerNorm)) for module in plain.modules())
    assert size(with_sem) - size(plain) == copies * 2 * GRID.width
    before = [name for name, _ in plain.named_parameters() if name.startswith(("torso.0.", "torso.2."))]
    assert len(before) == 4
    for name in before:
        assert torch.equal(plain.get_parameter(name), with_sem.get_parameter(name))
    assert [type(m) for m in with_sem.get_submodule("torso").children()][3:] == [nn.ReLU, SEM]
    assert "L=4 V=3 tau=1" in str(with_sem)


@pytest.mark.parametrize("copies", [1, Q])
def test_weights_with_sem_do_not_load_into_a_plain_network(copies: int) -> None:
    plain, with_sem = pair(copies)
    for source, other in ((plain, with_sem), (with_sem, plain)):
        with pytest.raises(RuntimeError, match=r"torso\.4"):
            other.load_state_dict(source.state_dict())


@pytest.mark.parametrize("copies", [None, Q])
def test_torso_width_and_features(copies: int | None) -> None:
    x = torch.randn(6, 5)
    for hidden, sem, width, kinds in (
        ((7,), None, 7, [nn.ReLU]),
        ((7, 9), None, 9, [nn.ReLU, nn.ReLU]),
        ((7,), GRID, 12, [SEM]),
        ((7, 9), GRID, 12, [nn.ReLU, SEM]),
    ):
        torso, actual = mlp_torso(5, hidden, sem, copies)
        assert actual == width == torso(x).shape[-1]
        assert torso(x).shape[:-1] == ((6,) if copies is None else (Q, 6))
        assert [type(m) for m in torso if not isinstance(m, (nn.Linear, BatchedLinear))] == kinds
        assert torso(x).min() >= 0


@pytest.mark.parametrize(("hidden", "sem"), [((0,), None), ((8, -1), None), ((), GRID)])
def test_impossible_torsos_are_refused(hidden: tuple[int, ...], sem: SEMConfig | None) -> None:
    with pytest.raises(ValueError, match="at least one unit"):
        mlp_torso(5, hidden, sem)


# ---- batched layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_batched_linear_equals_separate_ones(shared: bool) -> None:
    torch.manual_seed(0)
    batched = BatchedLinear(5, 4, Q)
    x = torch.randn(6, 5) if shared else torch.randn(Q, 6, 5)
    weight = torch.randn(Q, 6, 4)
    out = batched(x.requires_grad_())
    dx, dw, db = gradients((out * weight).sum(), x, batched)
    expected_dx = torch.zeros_like(dx)
    for q in range(Q):
        one = nn.Linear(5, 4)
        one.weight.data.copy_(batched.weight[q].T)
        one.bias.data.copy_(batched.bias[q, 0])
        rows = (x if shared else x[q]).detach().requires_grad_()
        y = one(rows)
        one_dx, one_dw, one_db = gradients((y * weight[q]).sum(), rows, one)
        torch.testing.assert_close(out[q], y)
        torch.testing.assert_close(dw[q], one_dw.T)
        torch.testing.assert_close(db[q, 0], one_db)
        (expected_dx if shared else expected_dx[q]).add_(one_dx)
    torch.testing.assert_close(dx, expected_dx)


def test_batched_layer_norm_equals_separate_ones() -> None:
    torch.manual_seed(0)
    batched = BatchedLayerNorm(8, Q).double()
    shake(batched)
    x = (3 + 1e-2 * torch.randn(Q, 6, 8).double()).requires_grad_()  # a small deviation, where eps shows
    weight = torch.randn(Q, 6, 8)
    out = batched(x)
    dx, dw, db = gradients((out * weight).sum(), x, batched)
    for q in range(Q):
        one = nn.LayerNorm(8).double()
        one.weight.data.copy_(batched.weight[q, 0])
        one.bias.data.copy_(batched.bias[q, 0])
        rows = x[q].detach().requires_grad_()
        y = one(rows)
        expected = gradients((y * weight[q]).sum(), rows, one)
        for actual, reference in zip((out[q], dx[q], dw[q, 0], db[q, 0]), (y, *expected), strict=True):
            torch.testing.assert_close(actual, reference)


def test_batched_layers_start_like_torch_ones() -> None:
    torch.manual_seed(0)
    batched, one = BatchedLinear(100, 80, Q), nn.Linear(100, 80)
    uniform = ("uniform", (-0.1, 0.2))  # SciPy wants the low end and the width
    for weight, bias in [(one.weight, one.bias), *zip(batched.weight, batched.bias, strict=True)]:
        for x in (array(weight).ravel(), array(bias).ravel()):
            assert np.abs(x).max() <= 0.1
            assert kstest(x, *uniform).pvalue > 0.01
    assert len(batched.weight.unique()) > 0.99 * batched.weight.numel()  # the copies differ
    norm = BatchedLayerNorm(8, Q)
    assert (norm.weight == 1).all() and (norm.bias == 0).all()


@pytest.mark.parametrize("sem", [None, GRID])
def test_no_gradient_flows_between_critics(sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    critics = CategoricalCritics(5, 2, (16, 12), 11, -1.0, 1.0, sem, Q)
    obs, action = torch.randn(9, 5), torch.randn(9, 2)
    for q in range(Q):
        for gradient in gradients(critics(obs, action)[q].square().sum(), critics):
            assert len(gradient) == Q
            assert all((gradient[other] == 0).all() == (other != q) for other in range(Q))


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [math.sqrt(2), 0.01])
def test_orthogonal_weights(gain: float) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4), nn.Conv2d(2, 5, 3), nn.Linear(4, 4, bias=False))
    layers.extend([SEM(4, GRID), nn.LayerNorm(12)])
    shake(layers)
    untouched = [layers[4].norm.weight.clone(), layers[5].weight.clone(), layers[5].bias.clone()]
    orthogonal_(layers, gain)
    for layer in (*layers[:4], layers[4].linear):
        weight = array(layer.weight).reshape(len(layer.weight), -1)
        shorter = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        np.testing.assert_allclose(shorter, gain**2 * np.eye(len(shorter)), atol=2e-6 * gain**2)
        assert layer.bias is None or (layer.bias == 0).all()
    for before, after in zip(untouched, (layers[4].norm.weight, layers[5].weight, layers[5].bias), strict=True):
        assert torch.equal(before, after)  # gains of a normalisation are no matrix


def test_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(300, 4), torch.randn(9, 300)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert torch.equal(float32(layer, x), exact)
        features = x.bfloat16().requires_grad_()
        out = float32(layer, features)
        assert layer(x).dtype == torch.bfloat16  # and autocast goes on after it
    assert torch.equal(out, layer(features.float()))
    (gradient,) = gradients(out.sum(), features)
    assert gradient.dtype == torch.bfloat16 and gradient.abs().max() > 0


KINDS = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "elu": nn.ELU}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", KINDS)
def test_torso_options_are_plain_torch(activation: Activation, norm: bool) -> None:
    torch.manual_seed(0)
    torso, width = mlp_torso(5, (8, 6), activation=activation, norm=norm)
    literal = nn.Sequential()
    for fan_in, fan_out in ((5, 8), (8, 6)):
        literal.append(nn.Linear(fan_in, fan_out))
        if norm:
            literal.append(nn.LayerNorm(fan_out))
        literal.append(KINDS[activation]())
    assert [type(m) for m in torso] == [type(m) for m in literal]
    shake(torso)
    literal.load_state_dict(torso.state_dict())
    x = 3 * torch.randn(7, 5)
    assert width == 6 and torch.equal(torso(x), literal(x))

    with_sem, width = mlp_torso(5, (8, 6), GRID, activation=activation, norm=norm)
    plain = 2 + norm  # the block has a normalisation of its own, and no other after it
    assert [type(m) for m in with_sem] == [*(type(m) for m in literal[:plain]), SEM] and width == 12


@pytest.mark.parametrize("norm", [False, True])
def test_torsos_in_copies_equal_separate_ones(norm: bool) -> None:
    torch.manual_seed(0)
    torso, _ = mlp_torso(5, (8, 6), None, Q, "silu", norm)
    shake(torso)
    x = torch.randn(7, 5)
    for q, out in enumerate(torso(x)):
        torch.testing.assert_close(out, one_copy(torso, q)(x), rtol=1e-5, atol=1e-5)


def one_copy(layers: nn.Sequential, q: int) -> nn.Sequential:
    """Copy number q of layers that come in copies, as modules that do not."""
    alone = nn.Sequential()
    for layer in layers:
        if isinstance(layer, BatchedLinear):
            one: nn.Module = nn.Linear(*layer.weight.shape[1:])
        elif isinstance(layer, BatchedLayerNorm):
            one = nn.LayerNorm(layer.weight.shape[-1])
        elif isinstance(layer, SEM):
            one = SEM(layer.linear.weight.shape[1], layer.config)
        else:
            one = type(layer)()
        for mine, theirs in zip(one.parameters(), layer.parameters(), strict=True):
            mine.data.copy_(theirs[q].T.reshape(mine.shape))
        alone.append(one)
    return alone


# ---- images ----------------------------------------------------------------------------------------------------------


def plain_cnn(channels: int) -> nn.Sequential:
    """The convolutions of the Nature DQN, from intensities in [0, 1]."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()),
        *(nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten()),
    )


@pytest.mark.parametrize(
    ("shape", "width"), [((4, 84, 84), 3136), ((3, 64, 64), 1024), ((1, 36, 36), 64), ((2, 50, 97), None)]
)
@pytest.mark.parametrize("amp", [False, True])
def test_nature_cnn_is_plain_torch(shape: tuple[int, int, int], width: int | None, amp: bool) -> None:
    torch.manual_seed(0)
    cnn, actual = nature_cnn(shape)
    plain = plain_cnn(shape[0])
    for theirs, mine in zip(plain.parameters(), cnn.parameters(), strict=True):
        theirs.data.copy_(mine)
    image = torch.randint(0, 256, (2, *shape), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        out, expected = cnn(image), plain(image.float() / 255)
    assert out.shape == (2, actual) and actual == (width or out.shape[1])
    assert out.dtype == expected.dtype == (torch.bfloat16 if amp else torch.float32)
    if amp:  # the same but for the rounding of pixels, which the first layer would do otherwise
        torch.testing.assert_close(out, expected, rtol=0.02, atol=0.002)
        assert expected.abs().max() > 0.05
    else:
        assert torch.equal(out, expected)


def test_nature_cnn_with_norms_is_plain_torch() -> None:
    """After each convolution, over channels and pixels."""
    torch.manual_seed(0)
    cnn, width = nature_cnn((4, 84, 84), norm=True)
    sizes = [(20, 20, 32), (9, 9, 64), (7, 7, 64)]
    norms = [layer for layer in cnn if isinstance(layer, nn.LayerNorm)]
    assert [norm.normalized_shape for norm in norms] == sizes and width == 3136
    with torch.no_grad():
        for norm in norms:
            for p in norm.parameters():
                p.normal_()
    image = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    x = image.double() / 255
    for layer in cnn:
        if isinstance(layer, nn.Conv2d):
            x = torch.nn.functional.conv2d(x, layer.weight.double(), layer.bias.double(), layer.stride)
        elif isinstance(layer, nn.LayerNorm):
            mean, variance = x.mean((1, 2, 3), keepdim=True), x.var((1, 2, 3), correction=0, keepdim=True)
            gain, bias = (p.movedim(-1, 0) for p in layer.parameters())
            x = (x - mean) / (variance + 1e-5).sqrt() * gain + bias
            x = x.clamp(min=0)
    for memory in (torch.contiguous_format, torch.channels_last):
        out = cnn(image.contiguous(memory_format=memory))
        torch.testing.assert_close(out.double(), x.flatten(1), rtol=1e-4, atol=1e-4)


def test_pixels_span_zero_to_one() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    out = Pixels()(image)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(array(out).ravel(), np.arange(256) / 255, rtol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        low = Pixels()(image)
    assert low.dtype == torch.bfloat16 and len(low.unique()) == 256  # none of the 256 levels is lost
    assert low.min() == 0 and low.max() == 1


@pytest.mark.parametrize("shape", [(4, 35, 84), (4, 84, 35), (84, 84, 3), (84, 84), (4,), (2, 4, 84, 84)])
def test_images_that_the_cnn_cannot_take_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"channels x height x width of at least 36 x 36 pixels, got \("):
        nature_cnn(shape)


# ---- actor -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sem", [None, GRID])
def test_actions_are_bounded_and_start_near_zero(sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    actor = DeterministicActor(5, 2, (64, 12), sem)
    x = torch.randn(1000, 5)
    first = actor(x)
    assert first.shape == (1000, 2) and first.abs().max() < 0.2
    assert (actor.head.bias == 0).all() and 0.005 < actor.head.weight.std() < 0.02
    shake(actor)
    action = actor(x)
    assert action.abs().max() <= 1 and action.abs().max() > 0.9
    with torch.autocast("cpu", torch.bfloat16):
        low = actor(x)
    assert low.dtype == torch.float32
    assert not torch.equal(low, low.bfloat16().float())  # tanh is computed in float32, not only stored as such


@pytest.mark.parametrize("sem", [None, GRID])
def test_saved_networks_act_and_value_the_same(sem: SEMConfig | None) -> None:
    def build(seed: int) -> tuple[DeterministicActor, CategoricalCritics]:
        torch.manual_seed(seed)
        return DeterministicActor(5, 2, (16, 12), sem), CategoricalCritics(5, 2, (16, 12), 11, -1.0, 1.0, sem, Q)

    obs = torch.randn(9, 5)
    (actor, critics), (other_actor, other_critics) = build(1), build(2)
    assert not torch.equal(actor(obs), other_actor(obs))
    for mine, theirs in ((actor, other_actor), (critics, other_critics)):
        file = io.BytesIO()
        torch.save(mine.state_dict(), file)
        file.seek(0)
        theirs.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(actor(obs), other_actor(obs))
    assert torch.equal(critics(obs, actor(obs)), other_critics(obs, actor(obs)))


# ---- critics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", [False, True])
def test_logits_and_values_are_float32(amp: bool) -> None:
    torch.manual_seed(0)
    critics = shake(CategoricalCritics(5, 2, (16, 12), 101, -250.0, 250.0, critics=Q))
    assert isinstance(critics, CategoricalCritics)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        logits = critics(torch.randn(9, 5), torch.randn(9, 2))
        value = critics.value(logits)
    assert logits.dtype == value.dtype == torch.float32
    p = np.exp(array(logits) - array(logits).max(-1, keepdims=True))
    expected = (p / p.sum(-1, keepdims=True)) @ np.linspace(-250, 250, 101)
    assert value.shape == (Q, 9)
    np.testing.assert_allclose(array(value), expected, atol=1e-3)  # bfloat16 is off by 1 at 250


def test_the_support_is_even_saved_and_not_learned() -> None:
    critics = CategoricalCritics(5, 2, (8,), 51, -10.0, 30.0)
    np.testing.assert_allclose(array(critics.support), np.linspace(-10, 30, 51), rtol=1e-6)
    assert "support" in critics.state_dict() and "support" not in dict(critics.named_parameters())
    assert critics(torch.zeros(4, 5), torch.zeros(4, 2)).shape == (2, 4, 51)


@pytest.mark.parametrize("bad", [(1, -1.0, 1.0), (11, 1.0, 1.0), (11, 2.0, 1.0), (11, math.nan, 1.0)])
def test_impossible_supports_are_refused(bad: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="v_min < v_max"):
        CategoricalCritics(5, 2, (8,), *bad)


# ---- distributions ---------------------------------------------------------------------------------------------------


def draw(mean: Tensor, log_std: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Action and density of SquashedGaussian.sample, and the noise that it has drawn."""
    torch.manual_seed(seed)
    noise = torch.randn_like(mean)
    torch.manual_seed(seed)
    return *SquashedGaussian(mean, log_std).sample(), noise


def test_squashed_gaussian_is_torchs_in_float64() -> None:
    """Also where tanh(x) is 1 in float32 (x > 9), and in float64 (x > 19)."""
    g = torch.Generator().manual_seed(1)
    mean = 20 * (2 * torch.rand(4000, 3, generator=g) - 1)
    log_std = -5 + 5.5 * torch.rand(4000, 3, generator=g)
    action, log_density, noise = draw(mean, log_std)
    wide, deviation = mean.double(), log_std.double().exp()
    x = wide + deviation * noise.double()
    squash = td.TanhTransform(cache_size=1)  # remembers x, which it could not get back from tanh(x)
    y = squash(x)
    expected = td.TransformedDistribution(td.Normal(wide, deviation), [squash]).log_prob(y).sum(-1)
    assert x.abs().max() > 20 and (action.abs() == 1).any()
    torch.testing.assert_close(action.double(), y, rtol=0, atol=1e-6)
    torch.testing.assert_close(log_density.double(), expected, rtol=2e-6, atol=2e-5)
    # And without what torch's formula shares with ours: the slope of tanh is 1 / cosh^2.
    by_hand = td.Normal(wide, deviation).log_prob(x) + 2 * x.cosh().log()
    torch.testing.assert_close(log_density.double(), by_hand.sum(-1), rtol=2e-6, atol=2e-5)


def test_gradients_of_squashed_gaussian_in_closed_form() -> None:
    """With x = mean + std * noise, log density = const - log_std - log(1 - tanh(x)^2)."""
    mean = torch.linspace(-20, 20, 401)[:, None].expand(-1, 2).clone().requires_grad_()
    log_std = torch.full_like(mean, -0.7).requires_grad_()
    action, log_density, noise = draw(mean, log_std)
    slope = torch.randn(401, 2, generator=torch.Generator().manual_seed(1))
    push = (mean.detach() + log_std.detach().exp() * noise).double()
    spread = (-0.7 * torch.ones(())).double().exp() * noise.double()
    by_mean, by_std = gradients(log_density.sum(), mean, log_std)
    torch.testing.assert_close(by_mean.double(), 2 * push.tanh(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_std.double(), 2 * push.tanh() * spread - 1, rtol=1e-5, atol=1e-5)
    action, _, _ = draw(mean, log_std)
    by_mean, by_std = gradients((action * slope).sum(), mean, log_std)
    torch.testing.assert_close(by_mean.double(), slope.double() / push.cosh().square(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(by_std.double(), slope * spread / push.cosh().square(), rtol=1e-4, atol=1e-6)
    for extreme in (1e3, -1e4):
        far = torch.tensor([[extreme, 0.0]], requires_grad=True)
        action, log_density, _ = draw(far, torch.zeros(1, 2))
        assert torch.isfinite(log_density).all() and action.abs().max() <= 1
        assert all(torch.isfinite(gradient).all() for gradient in gradients(log_density.sum() + action.sum(), far))


def test_draws_of_the_normal_policies_are_normal() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.tensor([0.3, -0.2]).expand(20_000, 2), torch.tensor([-1.0, -0.3]).expand(20_000, 2)
    draws = Gaussian(mean, log_std).sample(), torch.atanh(SquashedGaussian(mean, log_std).sample()[0])
    for x in draws:
        z = array((x - mean) / log_std.exp())
        assert kstest(z[:, 0], "norm").pvalue > 0.01 and kstest(z[:, 1], "norm").pvalue > 0.01
        assert abs(np.corrcoef(z.T)[0, 1]) < 0.03
    assert torch.equal(Gaussian(mean, log_std).mode(), mean)
    assert torch.equal(SquashedGaussian(mean, log_std).mode(), mean.tanh())


def test_gaussian_is_torchs() -> None:
    g = torch.Generator().manual_seed(0)
    mean, action = (3 * torch.randn(50, 4, generator=g) for _ in range(2))
    log_std = torch.randn(50, 4, generator=g)
    policy = Gaussian(mean.requires_grad_(), log_std.requires_grad_())
    theirs = td.Independent(td.Normal(mean.double(), log_std.double().exp()), 1)
    torch.testing.assert_close(policy.log_prob(action).double(), theirs.log_prob(action.double()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policy.entropy().double(), theirs.entropy(), rtol=1e-6, atol=1e-6)
    assert policy.log_prob(action).shape == policy.entropy().shape == (50,)
    weight = torch.randn(50, generator=g)
    mine = gradients((policy.log_prob(action) * weight).sum() + policy.entropy().sum(), mean, log_std)
    reference = gradients((theirs.log_prob(action.double()) * weight).sum() + theirs.entropy().sum(), mean, log_std)
    for gradient, expected in zip(mine, reference, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    assert gradients(policy.sample().sum(), mean)[0].eq(1).all()  # draws carry gradients


def test_categorical_is_torchs() -> None:
    g = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(60, 5, generator=g)).requires_grad_()
    action = torch.randint(0, 5, (60,), generator=g)
    policy, theirs = Categorical.of(logits), td.Categorical(logits=logits.double())
    torch.testing.assert_close(policy.log_prob(action).double(), theirs.log_prob(action), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(policy.entropy().double(), theirs.entropy(), rtol=1e-5, atol=1e-6)
    assert torch.equal(policy.mode(), theirs.mode) and policy.mode().dtype == torch.int64
    weight = torch.randn(60, generator=g)
    (mine,) = gradients((policy.log_prob(action) * weight).sum() + policy.entropy().sum(), logits)
    (reference,) = gradients((theirs.log_prob(action) * weight).sum() + theirs.entropy().sum(), logits)
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_a_categorical_of_extreme_logits_stays_finite() -> None:
    logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    policy = Categorical.of(logits)
    assert policy.entropy().item() == 0 and policy.log_prob(torch.tensor([2])).item() == -600
    assert torch.isfinite(gradients(policy.entropy().sum() + policy.log_prob(torch.tensor([1])).sum(), logits)[0]).all()


def test_categorical_draws_have_their_frequencies() -> None:
    torch.manual_seed(0)
    probs = torch.tensor([0.5, 0.25, 0.2, 0.049, 0.001])
    draws = Categorical.of(probs.log()[None].expand(200_000, 5)).sample()
    assert draws.dtype == torch.int64 and draws.shape == (200_000,)
    counts = np.bincount(draws.numpy(), minlength=5)
    assert chisquare(counts, 200_000 * array(probs) / array(probs).sum()).pvalue > 0.01
    certain = Categorical(torch.tensor([[-math.inf, 0.0]]).expand(1000, 2)).sample()
    assert (certain == 1).all()
    steady = Categorical.of(torch.randn(500, 3))  # rows are drawn apart from one another
    torch.manual_seed(1)
    first = steady.sample()
    assert not torch.equal(first, steady.sample()) and len(first.unique()) == 3


# ---- policies and values ---------------------------------------------------------------------------------------------


def in_numpy(network: nn.Module, x: Tensor, activation: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Features of `network.torso` in float64: Linear and activation, and the block as the paper writes it."""
    out = array(x)
    for layer in network.get_submodule("torso").children():
        if isinstance(layer, SEM):
            weight, *others = (array(p) for p in layer.parameters())
            out = sem_in_numpy(out, [weight.T, *others], layer.config)
        elif isinstance(layer, nn.Linear):
            out = out @ array(layer.weight).T + array(layer.bias)
        else:
            out = activation(out)
    return out


def head_in_numpy(head: nn.Linear, features: np.ndarray) -> np.ndarray:
    return features @ array(head.weight).T + array(head.bias)


TORSOS = [((), None), ((8,), None), ((8, 6), None), ((8,), GRID), ((8, 6), GRID)]


@pytest.mark.parametrize(("hidden", "sem"), TORSOS)
@pytest.mark.parametrize("state_dependent", [False, True])
def test_gaussian_actor(hidden: tuple[int, ...], sem: SEMConfig | None, state_dependent: bool) -> None:
    torch.manual_seed(0)
    actor = GaussianActor(5, 2, hidden, sem, init_std=0.5, state_dependent_std=state_dependent)
    x = torch.randn(500, 5)
    first = actor(x)
    assert first.mean.abs().max() < 0.1  # the first actions are noise around 0
    torch.testing.assert_close(first.log_std.exp(), torch.full((500, 2), 0.5), rtol=0.1, atol=0)
    assert state_dependent or (first.log_std == math.log(0.5)).all()
    for layer in actor.modules():
        if isinstance(layer, nn.Linear):
            assert (layer.bias == 0).all()
            gain = 0.01 if layer in (actor.head, actor.std_head) else math.sqrt(2)
            largest = np.linalg.svd(array(layer.weight), compute_uv=False)
            np.testing.assert_allclose(largest, gain, rtol=1e-5)
    shake(actor)
    policy, features = actor(x), in_numpy(actor, x, np.tanh)
    np.testing.assert_allclose(array(policy.mean), head_in_numpy(actor.head, features), rtol=1e-4, atol=1e-4)
    log_std = array(actor.log_std) + (0 if actor.std_head is None else head_in_numpy(actor.std_head, features))
    np.testing.assert_allclose(array(policy.log_std), np.broadcast_to(log_std, (500, 2)), rtol=1e-4, atol=1e-4)
    assert (policy.log_std.std(0) > 0.01).all() == state_dependent
    weight = torch.randn(500)  # the deviation is learned in both cases
    assert gradients((policy.log_prob(torch.randn(500, 2)) * weight).sum(), actor.log_std)[0].abs().min() > 0


@pytest.mark.parametrize(("hidden", "sem"), TORSOS)
def test_categorical_actor(hidden: tuple[int, ...], sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    actor, x = CategoricalActor(5, 3, hidden, sem), torch.randn(500, 5)
    torch.testing.assert_close(actor(x).log_probs, torch.full((500, 3), -math.log(3)), rtol=0, atol=0.1)
    np.testing.assert_allclose(np.linalg.svd(array(actor.head.weight), compute_uv=False), 0.01, rtol=1e-5)
    shake(actor)
    logits = head_in_numpy(actor.head, in_numpy(actor, x, np.tanh))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(array(actor(x).log_probs), log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("hidden", "sem"), TORSOS)
def test_value_critic(hidden: tuple[int, ...], sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    critic, x = ValueCritic(5, hidden, sem, activation="elu"), torch.randn(500, 5)
    np.testing.assert_allclose(np.linalg.norm(array(critic.head.weight)), 1, rtol=1e-5)
    shake(critic)
    features = in_numpy(critic, x, lambda h: np.where(h > 0, h, np.expm1(h)))
    value = critic(x)
    assert value.shape == (500,) and value.dtype == torch.float32
    np.testing.assert_allclose(array(value), head_in_numpy(critic.head, features)[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("hidden", "sem"), TORSOS)
@pytest.mark.parametrize("norm", [False, True])
def test_discrete_critic(norm: bool, hidden: tuple[int, ...], sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    critic, x = DiscreteCritic(5, 3, hidden, sem, "tanh", norm), torch.randn(500, 5)
    for layer in critic.modules():
        if isinstance(layer, nn.Linear):
            np.testing.assert_allclose(np.linalg.svd(array(layer.weight), compute_uv=False), math.sqrt(2), rtol=1e-5)
    shake(critic)
    features = critic.torso(x).detach().numpy() if norm else in_numpy(critic, x, np.tanh)
    norms = [layer for layer in critic.torso if isinstance(layer, nn.LayerNorm)]
    assert len(norms) == (len(hidden) - (sem is not None) if norm else 0)
    value = critic(x)
    assert value.shape == (500, 3) and value.dtype == torch.float32
    np.testing.assert_allclose(array(value), head_in_numpy(critic.head, features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sem", [None, GRID])
def test_heads_compute_in_float32_under_autocast(sem: SEMConfig | None) -> None:
    """Ratios of probabilities and small advantages are differences of close numbers: bfloat16 has 3 digits."""
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    normal, choice, value = GaussianActor(5, 2, (64, 12), sem), CategoricalActor(5, 3, (64, 12), sem), None
    value = ValueCritic(5, (64, 12), sem)
    for network in (normal, choice, value):
        shake(network)
        with torch.autocast("cpu", torch.bfloat16):
            features = network.torso(x)
            out = network(x)
        assert features.dtype == (torch.float32 if sem else torch.bfloat16)
        exact = network.head(features.float())
        if network is normal:
            assert out.log_std.dtype == torch.float32
            out = out.mean
        elif network is choice:
            out, exact = out.log_probs, exact.log_softmax(-1)
        else:
            exact = exact[:, 0]
        assert out.dtype == torch.float32 and torch.equal(out, exact)


@pytest.mark.parametrize("sem", [None, GRID])
def test_squashed_gaussian_actor_starts_in_the_middle(sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    actor, x = SquashedGaussianActor(5, 2, (16, 12), sem, log_std_min=-5, log_std_max=1), torch.randn(200, 5)
    assert (actor.head.weight == 0).all() and (actor.head.bias == 0).all()
    policy = actor(x)
    assert policy.mean.shape == policy.log_std.shape == (200, 2)
    assert (policy.mean == 0).all() and (policy.log_std == -2).all()
    assert gradients(policy.sample()[0].square().sum(), actor.head.weight)[0].abs().max() > 0  # it can leave 0


@pytest.mark.parametrize(("low", "high"), [(-5.0, 0.0), (-20.0, 2.0), (-1.0, -0.5)])
def test_log_std_has_its_range(low: float, high: float) -> None:
    torch.manual_seed(0)
    actor, x = SquashedGaussianActor(5, 2, (16, 12), log_std_min=low, log_std_max=high), torch.randn(2000, 5)
    shake(actor).head.weight.data.mul_(3)
    policy = actor(x)
    half = (high - low) / 2
    raw = head_in_numpy(actor.head, array(actor.torso(x)))
    assert policy.log_std.min() >= low - 1e-5 and policy.log_std.max() <= high + 1e-5
    np.testing.assert_allclose(array(policy.mean), raw[:, :2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(array(policy.log_std), low + half * (np.tanh(raw[:, 2:]) + 1), atol=1e-4 * half)
    assert policy.log_std.max() - policy.log_std.min() > 1.9 * half  # all of it is used
    assert SEM not in {type(m) for m in actor.modules()} and nn.LayerNorm in {type(m) for m in actor.modules()}


def test_impossible_policies_are_refused() -> None:
    for low, high in ((0.0, 0.0), (1.0, -1.0), (math.nan, 0.0)):
        with pytest.raises(ValueError, match="range of log_std must not be empty"):
            SquashedGaussianActor(5, 2, (8,), log_std_min=low, log_std_max=high)
    for init_std in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            GaussianActor(5, 2, (8,), init_std=init_std)


@pytest.mark.parametrize("sem", [None, GRID])
@pytest.mark.parametrize(("activation", "norm"), [("relu", False), ("silu", True)])
def test_scalar_critics_equal_two_networks(sem: SEMConfig | None, activation: Activation, norm: bool) -> None:
    torch.manual_seed(0)
    critics = ScalarCritics(5, 2, (16, 12), sem, activation=activation, norm=norm)
    shake(critics)
    alone = [one_copy(nn.Sequential(*critics.torso, critics.head), q) for q in range(2)]
    obs, action, weight = torch.randn(9, 5), torch.randn(9, 2).requires_grad_(), torch.randn(2, 9)
    value = critics(obs, action)
    expected = torch.stack([one(torch.cat([obs, action], -1))[:, 0] for one in alone])
    assert value.shape == (2, 9)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    climb, *mine = gradients((value * weight).sum(), action, critics)
    expected_climb, *theirs = gradients((expected * weight).sum(), action, *alone)
    torch.testing.assert_close(climb, expected_climb, rtol=1e-4, atol=1e-4)
    for i, gradient in enumerate(mine):
        for q in range(2):
            other = theirs[q * len(mine) + i]
            torch.testing.assert_close(gradient[q].squeeze(), other.t().squeeze(), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert critics(obs, action).dtype == torch.float32


# ---- projection ------------------------------------------------------------------------------------------------------


def project_slowly(probs: np.ndarray, atoms: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Equation 7 of the C51 paper, term by term: atom i gets [1 - |clip(Tz_j) - z_i| / dz] from 0 to 1 of each p_j."""
    out = np.zeros(probs.shape)
    width = (support[-1] - support[0]) / (len(support) - 1)
    for q in range(probs.shape[0]):
        for b in range(probs.shape[1]):
            for j in range(len(support)):
                landed = min(max(atoms[b, j], support[0]), support[-1])
                for i in range(len(support)):
                    out[q, b, i] += min(max(1 - abs(landed - support[i]) / width, 0), 1) * probs[q, b, j]
    return out


@st.composite
def bellman(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    """(probs [Q, B, K], atoms [B, K], support [K], tolerance) of a Bellman backup, with float32's own rounding."""
    low = draw(st.floats(-300, 0, width=32))
    width = draw(st.floats(1, 500, width=32))
    count, critics, batch = draw(st.integers(2, 12)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    support = torch.linspace(low, low + width, count)
    numbers = st.one_of(st.just(0.0), st.floats(-600, 600, width=32))
    reward = torch.tensor(draw(st.lists(numbers, min_size=batch, max_size=batch)))
    discounts = st.one_of(st.sampled_from([0.0, 1.0, 0.99]), st.floats(0, 1, width=32))
    discount = torch.tensor(draw(st.lists(discounts, min_size=batch, max_size=batch)))
    probs = random_probs(critics, batch, count, seed=draw(st.integers(0, 999)))
    atoms = reward[:, None] + discount[:, None] * support
    size = max(float(support.abs().max()), float(atoms.abs().clamp(max=2 * width).max()))
    return probs, atoms, support, 1e-6 + 8 * 2**-23 * size * (count - 1) / width


@settings(max_examples=150, deadline=None)
@given(bellman())
def test_projection_equals_brute_force(case: tuple[Tensor, Tensor, Tensor, float]) -> None:
    probs, atoms, support, tolerance = case
    out = project(probs, atoms, support)
    assert out.shape == probs.shape and out.dtype == torch.float32
    np.testing.assert_allclose(array(out), project_slowly(*map(array, (probs, atoms, support))), atol=tolerance)
    # Mass, and the mean, which clipping moves and splitting between neighbours does not.
    assert out.min() >= 0 and (out.sum(-1) - 1).abs().max() < 1e-5
    landed = atoms.clamp(float(support[0]), float(support[-1]))
    expected = (array(probs) * array(landed)).sum(-1)
    spread = float(support[-1] - support[0])
    np.testing.assert_allclose((array(out) * array(support)).sum(-1), expected, atol=spread * tolerance + 1e-4)


def test_projection_at_the_corners() -> None:
    support = torch.linspace(-2, 2, 5)
    probs = random_probs(2, 1, 5)

    def backup(reward: float, discount: float) -> Tensor:
        return project(probs, (reward + discount * support)[None], support)

    assert torch.equal(backup(0, 1), probs)  # every atom falls on a grid point
    for reward, discount, expected in (
        (0, 0, [0.0, 0.0, 1.0, 0.0, 0.0]),
        (0.25, 0, [0.0, 0.0, 0.75, 0.25, 0.0]),
        (2, 0, [0.0, 0.0, 0.0, 0.0, 1.0]),  # the last grid point
        (99, 1, [0.0, 0.0, 0.0, 0.0, 1.0]),
        (-99, 1, [1.0, 0.0, 0.0, 0.0, 0.0]),
    ):
        torch.testing.assert_close(backup(reward, discount), torch.tensor(expected).expand(2, 1, 5))
    shifted = torch.cat([torch.zeros(2, 1, 1), probs[..., :3], probs[..., 3:].sum(-1, keepdim=True)], -1)
    torch.testing.assert_close(backup(1, 1), shifted)


@pytest.mark.parametrize("atoms", [2, 51, 101])
def test_an_unmoved_distribution_stays_on_a_real_support(atoms: int) -> None:
    for low, high in ((-250.0, 250.0), (0.0, 100.0), (-10.0, 10.0), (-1.7, 0.3)):
        support = torch.linspace(low, high, atoms)
        probs = random_probs(1, 8, atoms)
        torch.testing.assert_close(project(probs, support.expand(8, -1), support), probs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(2, 4, 7), (1, 4, 7), (4, 7)])
def test_projection_treats_rows_and_critics_alone(shape: tuple[int, ...]) -> None:
    support = torch.linspace(-1, 1, 7)
    atoms = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)) + 0.9 * support
    probs = random_probs(*shape)
    out = project(probs, atoms, support)
    assert out.shape == shape
    for q, copy in enumerate(probs.view(-1, 4, 7)):
        for b in range(4):
            alone = project(copy[None, b : b + 1], atoms[b : b + 1], support)
            assert torch.equal(out.view(-1, 4, 7)[q, b], alone[0, 0])


def test_projection_computes_in_float32_whatever_comes_in() -> None:
    support = torch.linspace(-250, 250, 101)
    probs = random_probs(2, 16, 101)
    reward, discount = torch.rand(16, 1), torch.full((16, 1), 0.99)
    plain = project(probs, torch.addcmul(reward, discount, support), support)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(project(probs, torch.addcmul(reward, discount, support), support), plain)
    low = probs.bfloat16()
    out = project(low, torch.addcmul(reward, discount, support), support)
    assert out.dtype == torch.float32
    assert torch.equal(out, project(low.float(), torch.addcmul(reward, discount, support), support))
    assert project(probs.double(), support.expand(16, -1), support).dtype == torch.float32
    # A point mass at 200 and no reward: the mean is 198 at 0.99, and 197.66 at what bfloat16 makes of 0.99.
    point = F.one_hot(torch.tensor([[90]]), 101).bfloat16()
    mean = float(project(point, torch.tensor([[0.99]]) * support, support)[0, 0] @ support)
    assert mean == pytest.approx(198, abs=1e-3)


# ---- normalisers -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.sampled_from([(0.0, 1.0), (1e6, 0.1), (-3e4, 50.0), (0.5, 1e-3)]),
    st.integers(0, 999),
)
def test_running_norm_equals_all_data_at_once(sizes: list[int], scale: tuple[float, float], seed: int) -> None:
    data = scale[0] + scale[1] * np.random.default_rng(seed).standard_normal((sum(sizes), 3))
    norm = RunningNorm(3)
    for chunk in torch.tensor(data).split(sizes):
        norm.update(chunk)
    mean, deviation = data.mean(0), data.std(0)
    assert norm.count == len(data)
    np.testing.assert_allclose(array(norm.mean64), mean, rtol=1e-13, atol=1e-13)
    # Float64 holds 1e6 to 1e-10, so the deviations of 0.1 are known to 1e-9; sums of squares would lose two digits.
    np.testing.assert_allclose(np.sqrt(array(norm.square) / len(data)), deviation, rtol=1e-7, atol=1e-9)
    x = torch.tensor(data[:5]).float()
    expected = (array(x) - mean.astype(np.float32)) / (deviation + 1e-2)
    np.testing.assert_allclose(array(norm(x)), expected, rtol=1e-5, atol=1e-5)
    assert norm(x).dtype == torch.float32


def test_running_norm_takes_any_shape() -> None:
    torch.manual_seed(0)
    for shape in (4, (4,), (2, 3)):
        dims = (shape,) if isinstance(shape, int) else shape
        norm, x = RunningNorm(shape), 5 + 2 * torch.randn(50, *dims)
        norm.update(x)
        expected = (array(x) - array(x).mean(0)) / (array(x).std(0) + 1e-2)
        np.testing.assert_allclose(array(norm(x)), expected, atol=1e-5)
        assert torch.equal(norm(x.expand(7, 50, *dims))[3], norm(x)) and torch.equal(norm(x[0]), norm(x)[0])


def test_running_norm_moves_only_when_told() -> None:
    torch.manual_seed(0)
    norm, x = RunningNorm(3), torch.randn(8, 3)
    assert torch.equal(norm(x), x)  # nothing learned, nothing changed
    norm.update(4 * x + 1)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    outputs = [norm.train(mode)(x) for mode in (True, False, True)]
    assert all(torch.equal(out, outputs[0]) for out in outputs)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    norm.eval().update(torch.zeros(8, 3))  # and it does when told, in eval mode too
    assert not torch.equal(norm.mean, before["mean"])
    assert not list(norm.parameters())


def test_running_norm_continues_after_loading() -> None:
    torch.manual_seed(0)
    first, again, x = RunningNorm(3), RunningNorm(3), 7 + torch.randn(60, 3)
    first.update(x[:40])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(x), again(x))
    for norm in (first, again):
        norm.update(x[40:])
    assert torch.equal(first(x), again(x))
    np.testing.assert_allclose(array(again.mean64), array(x).mean(0), rtol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 30), st.sampled_from([0.0, 0.9, 1.0]))
def test_reward_scale_equals_a_loop(seed: int, num_envs: int, steps: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    rewards = (rng.standard_normal((steps, num_envs)) * 3 + 1).astype(np.float32)
    dones = rng.random((steps, num_envs)) < 0.2
    g_max = float(rng.choice([0.5, 10.0, 250.0]))
    scale = RewardScale(num_envs, gamma, g_max)
    for reward, done in zip(rewards, dones, strict=True):
        scale.update(torch.tensor(reward), torch.tensor(done))

    returns = []
    for env in range(num_envs):
        total = 0.0
        for t in range(steps):
            total = gamma * total + float(rewards[t, env])
            returns.append(total)
            if dones[t, env]:
                total = 0.0
    divisor = max(float(np.std(returns)), max(map(abs, returns)) / g_max)
    assert float(scale.count) == len(returns)
    out = scale(torch.tensor(rewards))
    assert out.shape == rewards.shape and out.dtype == torch.float32
    np.testing.assert_allclose(array(out), rewards / divisor, rtol=1e-4, atol=1e-6)
    assert max(map(abs, returns)) / divisor <= g_max * (1 + 1e-6)  # what the rule is for


def test_reward_scale_of_nothing_is_one() -> None:
    scale, reward = RewardScale(2, 0.9, 10.0), torch.tensor([3.0, -1.0])
    assert torch.equal(scale(reward), reward)  # before the first update
    for _ in range(5):
        scale.update(torch.zeros(2), torch.tensor([False, True]))
    assert torch.equal(scale(reward), reward)
    assert torch.equal(scale(torch.zeros(2)), torch.zeros(2))


def test_reward_scale_moves_only_when_told_and_continues_after_loading() -> None:
    torch.manual_seed(0)
    first, again = RewardScale(4, 0.9, 0.5), RewardScale(4, 0.9, 0.5)  # where the largest return decides
    rewards, dones = torch.randn(20, 4), torch.rand(20, 4) < 0.2
    rewards[3] = 50
    for t in range(10):
        first.update(rewards[t], dones[t])
    before = {name: value.clone() for name, value in first.state_dict().items()}
    first(rewards)
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())
    again.load_state_dict(before)
    for scale in (first, again):
        for t in range(10, 20):
            scale.update(rewards[t], dones[t])
    assert torch.equal(first(rewards), again(rewards)) and not torch.equal(first.total, before["total"])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 4), st.integers(1, 12))
def test_reward_scale_takes_steps_one_by_one_or_together(seed: int, num_envs: int, steps: int) -> None:
    g = torch.Generator().manual_seed(seed)
    whole, single = RewardScale(num_envs, 0.9, 2.0), RewardScale(num_envs, 0.9, 2.0)
    for _ in range(3):  # episodes go on from one call to the next
        reward, done = 3 * torch.randn(steps, num_envs, generator=g), torch.rand(steps, num_envs, generator=g) < 0.2
        whole.update(reward, done)
        for t in range(steps):
            single.update(reward[t], done[t])
        for name in ("running", "largest", "count"):
            assert torch.equal(getattr(whole, name), getattr(single, name)), name
        for name in ("total", "square"):  # sums in another order
            torch.testing.assert_close(getattr(whole, name), getattr(single, name), rtol=1e-12, atol=1e-12)


def test_reward_scale_of_several_tasks_is_one_for_each() -> None:
    torch.manual_seed(0)
    task = torch.tensor([0, 2, 1, 0, 2, 1])
    together, apart = RewardScale(6, 0.9, 2.0, task), [RewardScale(2, 0.9, 2.0) for _ in range(3)]
    rewards = torch.randn(4, 10, 6) * (10.0**task)
    dones = torch.rand(4, 10, 6) < 0.2
    for reward, done in zip(rewards, dones, strict=True):
        together.update(reward, done)
        for number, scale in enumerate(apart):
            scale.update(reward[:, task == number], done[:, task == number])
    asked = torch.tensor([1, 1, 0, 2])
    expected = torch.stack([apart[number](torch.tensor(3.0)) for number in asked.tolist()])
    assert torch.equal(together(torch.full((4,), 3.0), asked), expected) and len(expected.unique()) == 3
    assert not {"task", "member"} & together.state_dict().keys()


def test_running_norm_leaves_the_last_features_alone() -> None:
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(50, 4)
    whole, part = RunningNorm(4), RunningNorm(4, keep=2)
    for norm in (whole, part):
        norm.update(x[:30])
        norm.update(x[30:])
    assert torch.equal(part(x)[:, :2], whole(x)[:, :2]) and torch.equal(part(x)[:, 2:], x[:, 2:])


def test_gradients_of_a_policy_in_closed_form_equal_autograd() -> None:
    torch.manual_seed(0)
    by_log_prob, by_entropy = torch.randn(2, 9, dtype=torch.float64)
    mean, log_std = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    gaussian = Gaussian(mean, log_std)
    categorical = Categorical(torch.log_softmax(torch.randn(9, 4, dtype=torch.float64), -1).requires_grad_())
    for policy, action in ((gaussian, torch.randn(9, 3).double()), (categorical, torch.randint(4, (9,)))):
        loss = (by_log_prob * policy.log_prob(action) + by_entropy * policy.entropy()).sum()
        expected = torch.autograd.grad(loss, list(policy))
        with torch.no_grad():
            log_prob, score = policy.score(action)
            actual = policy.gradient(score, by_log_prob, by_entropy)
        torch.testing.assert_close(log_prob, policy.log_prob(action))
        for one, two in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, two)
