"""Networks against NumPy in float64, against torch's own modules bit for bit, and against brute force."""

import io
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor, nn

from networks.actors import DeterministicActor
from networks.critics import CategoricalCritics, project
from networks.layers import BatchedLayerNorm, BatchedLinear
from networks.normalize import RewardScale, RunningNorm
from networks.sem import SEM, SEMConfig, entropy, simplicial
from networks.torso import mlp_torso

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


def test_sem_equals_torch_modules_forward_and_backward() -> None:
    torch.manual_seed(0)
    block = shake(SEM(5, SEMConfig(2, 16)))  # groups of 16 or more: the same kernel, so the same bits
    literal = nn.Sequential(
        nn.Linear(5, 32), nn.LayerNorm(32), nn.Unflatten(-1, (2, 16)), nn.Softmax(-1), nn.Flatten(-2, -1)
    )
    for theirs, mine in zip(literal.parameters(), block.parameters(), strict=True):
        theirs.data.copy_(mine)
    x, weight = torch.randn(6, 5), torch.randn(6, 32)
    assert torch.equal(block(x), literal(x))
    expected = gradients((literal(x) * weight).sum(), literal)
    for gradient, reference in zip(gradients((block(x) * weight).sum(), block), expected, strict=True):
        assert torch.equal(gradient, reference) and gradient.abs().max() > 0


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
