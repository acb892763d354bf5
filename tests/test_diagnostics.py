"""Diagnostics against closed forms, NumPy's own decompositions, loops over float64, and what must not change them."""

import inspect
import math
from collections.abc import Callable
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.tensorboard.summary import image

from agents.metrics import to_floats
from networks import diagnostics as d
from networks.critics import project
from networks.flat import Flat
from networks.sem import SEM, SEMConfig, entropy, simplicial
from networks.torso import mlp_torso, nature_cnn

Q = 3
exact = {"rtol": 1e-9, "atol": 1e-9}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix whose columns are orthonormal."""
    return torch.linalg.qr(randn(rows, columns, seed=seed)).Q


def spectrum(values: list[float], rows: int = 40, columns: int = 30) -> Tensor:
    """A matrix with these singular values."""
    k = len(values)
    return orthonormal(rows, k, seed=1) * torch.tensor(values, dtype=torch.float64) @ orthonormal(columns, k, seed=2).T


def codes(*shape: int, groups: int = 4, seed: int = 0, scale: float = 2.0) -> Tensor:
    """Random points on a product of simplices, float32 as networks give them."""
    return simplicial(scale * randn(*shape, seed=seed), groups)


def one_hot(vertices: list[list[int]], width: int) -> Tensor:
    """Codes [B, L*V] with these vertices [B, L]."""
    return F.one_hot(torch.tensor(vertices), width).flatten(1).float()


FACTORIAL = [[a, b] for a in range(3) for b in range(3)]
"""every combination of the vertices of two triangles"""


# ---- ranks -----------------------------------------------------------------------------------------------------------


def ranks_in_numpy(features: Tensor, energy: float = 0.99) -> tuple[float, int]:
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    entropy_of_shares, total, reached = 0.0, float(sum(values)), 0.0
    for value in values:
        if value / total > 1e-12:
            entropy_of_shares -= value / total * math.log(value / total)
    for k, value in enumerate(values, 1):
        reached += float(value)
        if reached / total >= energy:
            return math.exp(entropy_of_shares), k
    raise AssertionError("the shares sum to 1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(50, 50), (60, 20), (20, 60), (1, 7), (7, 1)])
def test_ranks_are_those_of_numpy_and_a_loop(rows: int, columns: int, dtype: torch.dtype) -> None:
    for features in (randn(rows, columns), randn(rows, columns).relu() + 0.1, randn(rows, columns) ** 5):
        features = features.to(dtype)
        effective, stable = ranks_in_numpy(features)
        torch.testing.assert_close(d.effective_rank(features).item(), effective, rtol=1e-6, atol=0)
        assert d.srank(features).item() == stable
        assert d.srank(features, 0.5).item() == ranks_in_numpy(features, 0.5)[1]


@pytest.mark.parametrize("n", [1, 2, 100, 101])
def test_the_identity_has_full_rank(n: int) -> None:
    for features in (torch.eye(n), 7 * orthonormal(n, n), orthonormal(2 * n, n), orthonormal(2 * n, n).T):
        torch.testing.assert_close(d.effective_rank(features).item(), float(n), **exact)
        assert d.srank(features).item() == math.ceil(0.99 * n - 1e-9)
    assert d.srank(torch.eye(300)).item() == 297  # whose shares, added up in float64, fall short of 0.99


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_k_equal_directions_have_rank_k(k: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        features = spectrum([3.0] * k).to(dtype)
        assert abs(d.effective_rank(features).item() - k) < tolerance * k
        assert d.srank(features).item() == k


@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("n", [2, 6])
def test_a_geometric_spectrum_has_its_closed_form(ratio: float, n: int) -> None:
    features = spectrum([ratio**i for i in range(n)])
    kept = 1 - ratio**n
    mean_index = ratio / (1 - ratio) - n * ratio**n / kept
    nats = -math.log((1 - ratio) / kept) - math.log(ratio) * mean_index
    torch.testing.assert_close(d.effective_rank(features).item(), math.exp(nats), **exact)
    assert d.srank(features).item() == next(k for k in range(1, n + 1) if (1 - ratio**k) / kept >= 0.99)


def test_codes_that_use_every_combination_have_the_rank_of_their_simplices() -> None:
    # The Gram matrix of all 9 pairs of vertices of two triangles has eigenvalues 6 (the mean), 3 four times, and 0.
    shares = torch.tensor([math.sqrt(2), 1, 1, 1, 1], dtype=torch.float64) / (4 + math.sqrt(2))
    expected = torch.special.entr(shares).sum().exp().item()
    features = one_hot(FACTORIAL, 3)
    torch.testing.assert_close(d.effective_rank(features).item(), expected, **exact)
    assert d.srank(features).item() == 5
    assert d.effective_rank(torch.full((9, 6), 1 / 3)).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("measure", [d.effective_rank, d.srank])
def test_ranks_do_not_see_order_scale_or_rotation(measure: Callable[[Tensor], Tensor]) -> None:
    features = randn(30, 20) * torch.logspace(0, -4, 20, dtype=torch.float64)
    same = [
        features.flip(0),
        features[:, torch.arange(19, -1, -1)],
        features * 1e200,  # whose squares are not finite
        features * 1e-200,
        -features,
        features @ orthonormal(20, 20, seed=3),
        orthonormal(30, 30, seed=4) @ features,
        features.repeat(3, 1),  # the batch three times
        features.T,
        F.pad(features, (0, 5)),  # units that are always 0
    ]
    for other in same:
        torch.testing.assert_close(measure(other), measure(features), rtol=1e-7, atol=0)
    assert measure(features + 5).item() < 0.8 * measure(features).item(), "a common offset is a direction"


@pytest.mark.parametrize("shape", [(4, 5), (1, 5), (5, 1), (Q, 4, 5)])
def test_a_zero_matrix_has_rank_zero(shape: tuple[int, ...]) -> None:
    assert d.effective_rank(torch.zeros(shape)).item() == d.srank(torch.zeros(shape)).item() == 0
    assert d.effective_rank(torch.full(shape[-2:], 1e-42)).item() == pytest.approx(1)
    assert d.singular_values(torch.zeros(shape)).shape == (*shape[:-2], min(shape[-2:]))  # of the smaller Gram matrix


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_feature_gives_nan_and_no_error(bad: float) -> None:
    features = randn(2, 6, 4)
    features[1, 2, 3] = bad
    assert d.effective_rank(features).isnan() and d.srank(features).isnan()
    assert d.singular_values(features)[0].isfinite().all() and d.singular_values(features)[1].isnan().all()
    assert not d.feature_norm(features).isfinite() and not d.gini(features).isfinite()


def test_half_precision_is_widened_also_under_autocast() -> None:
    features = randn(200, 40, dtype=torch.bfloat16)
    expected = d.describe_features("x", features.double())
    with torch.autocast("cpu", torch.bfloat16):
        found = d.describe_features("x", features)
        again = d.describe_features("x", features.float())
    for tag, value in expected.items():
        for other in (found[tag], again[tag]):
            torch.testing.assert_close(other.double(), value.double(), rtol=1e-6, atol=1e-6, msg=tag)


# ---- units and norms -------------------------------------------------------------------------------------------------


def test_dormant_units_are_those_that_never_rise_above_zero() -> None:
    features = torch.tensor([[0.0, -1.0, 1e-9, 0.0, 5.0], [0.0, -2.0, -3.0, 2.0, 5.0]])
    assert d.dormant(features).item() == pytest.approx(2 / 5)  # the first two
    assert d.dormant(features[:1]).item() == pytest.approx(3 / 5)  # in a batch of one, the fourth too
    assert d.dormant(torch.zeros(4, 3)).item() == 1


def test_tau_dormant_units_are_those_far_below_the_layers_mean() -> None:
    level = torch.tensor([0.0, 0.02, 0.2, 1.0, 8.78])  # mean 2
    features = torch.stack([level, -level])  # what counts is the absolute value
    for tau, expected in ((0.0, 1), (0.0099, 1), (0.0101, 2), (0.025, 2), (0.11, 3), (0.6, 4), (5.0, 5)):
        assert d.dormant_tau(features, tau).item() == pytest.approx(expected / 5), tau
    assert d.dormant_tau(features).item() == pytest.approx(2 / 5)
    assert d.dormant_tau(torch.zeros(4, 3)).item() == 1
    assert d.dormant_tau(torch.ones(4, 3)).item() == 0


@pytest.mark.parametrize("measure", [d.dormant, d.dormant_tau])
def test_dormancy_does_not_see_order_or_scale(measure: Callable[[Tensor], Tensor]) -> None:
    features = (randn(16, 40) - 2 * randn(40, seed=1).abs()).relu()
    share = measure(features)
    assert 0.1 < share.item() < 0.9
    assert measure(features * 1e-6) == measure(features.flip(0)) == measure(features.flip(1)) == share


def test_feature_norm_is_the_mean_length() -> None:
    features = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-5.0, 12.0]])
    assert d.feature_norm(features).item() == pytest.approx((5 + 0 + 13) / 3)
    assert d.feature_norm(one_hot(FACTORIAL, 3)).item() == pytest.approx(math.sqrt(2))
    assert d.feature_norm(torch.full((2, 6), 1 / 3)).item() == pytest.approx(math.sqrt(2 / 3))
    rotated = randn(9, 5) @ orthonormal(5, 5)
    torch.testing.assert_close(d.feature_norm(rotated), d.feature_norm(randn(9, 5)), **exact)


@pytest.mark.parametrize("norm", [False, True])
def test_weight_norm_is_that_of_the_matrices(norm: bool) -> None:
    torch.manual_seed(0)
    torso, _ = mlp_torso(5, (4, 6), SEMConfig(2, 3), norm=norm)
    linears = [torso[0], torso[-1].linear]
    expected = math.sqrt(sum((layer.weight**2).sum().item() for layer in linears))
    assert d.weight_norm(torso).item() == pytest.approx(expected, rel=1e-6)
    with torch.no_grad():
        for name, parameter in torso.named_parameters():
            if "norm" in name or "bias" in name or parameter.dim() == 1:
                parameter.add_(3.0)  # gains and offsets do not count
    assert d.weight_norm(torso).item() == pytest.approx(expected, rel=1e-6)


def test_weight_norm_of_copies_is_their_mean() -> None:
    torch.manual_seed(0)
    torso, _ = mlp_torso(5, (4, 6), copies=Q)
    with torch.no_grad():
        torso[0].weight[1] *= 10
    each = [math.sqrt(((torso[0].weight[q] ** 2).sum() + (torso[2].weight[q] ** 2).sum()).item()) for q in range(Q)]
    assert d.weight_norm(torso).item() == pytest.approx(np.mean(each), rel=1e-6)


def test_weight_norm_counts_convolutions_and_is_zero_without_weights() -> None:
    cnn, _ = nature_cnn((3, 36, 36))
    expected = math.sqrt(sum((layer.weight**2).sum().item() for layer in cnn if isinstance(layer, nn.Conv2d)))
    assert d.weight_norm(cnn).item() == pytest.approx(expected, rel=1e-6)
    assert d.weight_norm(nn.LayerNorm(4)).item() == 0


def test_weight_norms_are_those_of_each_copy() -> None:
    torch.manual_seed(0)
    torso, _ = mlp_torso(5, (4, 6), copies=Q)
    each = [math.sqrt(sum((torso[i].weight[q] ** 2).sum().item() for i in (0, 2))) for q in range(Q)]
    assert d.weight_norms(torso).tolist() == pytest.approx(each, rel=1e-6)
    assert d.weight_norms(mlp_torso(5, (4, 6))[0]).shape == d.weight_norms(nn.LayerNorm(4)).shape == (1,)


def gini_by_pairs(features: Tensor) -> float:
    """Half the relative mean absolute difference, pair by pair."""
    rows = []
    for row in features.double().abs().tolist():
        differences = sum(abs(a - b) for a in row for b in row)
        rows.append(differences / (2 * len(row) * sum(row)) if sum(row) else 0.0)
    return sum(rows) / len(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gini_is_half_the_relative_mean_difference(dtype: torch.dtype) -> None:
    features = randn(6, 15).to(dtype)
    features[2] = 0
    features[3, 4:] = 0
    assert d.gini(features).item() == pytest.approx(gini_by_pairs(features), abs=1e-6)


def test_gini_of_what_is_known() -> None:
    assert d.gini(torch.full((3, 8), -2.0)).item() == pytest.approx(0, abs=1e-7)
    assert d.gini(torch.eye(8)).item() == pytest.approx(1 - 1 / 8)
    assert d.gini(one_hot(FACTORIAL, 3)).item() == pytest.approx(1 - 1 / 3)
    assert d.gini(torch.arange(1, 11.0)[None]).item() == pytest.approx(0.3)  # (n - 1) / (3 n) for 1 to n
    assert d.gini(torch.zeros(2, 5)).item() == 0
    assert d.gini(torch.ones(2, 1)).item() == 0


def test_gini_does_not_see_order_sign_or_scale_but_an_offset() -> None:
    features = randn(5, 12)
    for other in (features.flip(1), features.flip(0), -3e8 * features, features.repeat(1, 4)):
        torch.testing.assert_close(d.gini(other), d.gini(features), **exact)
    assert d.gini(features.abs() + 1) < d.gini(features) < d.gini(F.pad(features, (0, 12)))


# ---- simplices -------------------------------------------------------------------------------------------------------


def test_simplices_of_one_hot_codes() -> None:
    every, single = one_hot(FACTORIAL, 3), one_hot([[0, 2]] * 9, 3)
    for code, used in ((every, 3), (single, 1)):
        assert d.perplexity(code, 2).item() == pytest.approx(1)
        assert d.usage_perplexity(code, 2).item() == pytest.approx(used)
        assert d.vertices_in_use(code, 2).item() == used
        assert d.dead_vertices(code, 2).item() == pytest.approx(1 - used / 3)
    lopsided = one_hot([[0, 0], [0, 1], [0, 2], [0, 3]], 4)  # one vertex of the first group, four of the second
    assert d.vertices_in_use(lopsided, 2).item() == d.usage_perplexity(lopsided, 2).item() == pytest.approx(2.5)
    assert d.dead_vertices(lopsided, 2).item() == pytest.approx(3 / 8)


@pytest.mark.parametrize("vertices", [2, 3, 7, 64])
def test_simplices_of_uniform_codes(vertices: int) -> None:
    code = simplicial(torch.zeros(5, 2 * vertices), 2)
    assert d.perplexity(code, 2).item() == pytest.approx(vertices, rel=1e-5)
    assert d.usage_perplexity(code, 2).item() == pytest.approx(vertices, rel=1e-5)
    assert d.dead_vertices(code, 2).item() == 1, "none is ever preferred"
    assert d.dead_vertices(code * (1 + 1e-6 * randn(5, 2 * vertices)), 2).item() == 1, "but for rounding"
    assert d.vertices_in_use(code, 2).item() == 1


@pytest.mark.parametrize("shape", [(8, 12), (1, 12), (Q, 8, 12)])
def test_simplices_against_loops(shape: tuple[int, ...]) -> None:
    code = codes(*shape)
    spread, usage, used, dead = [], [], [], []
    for copy in code.double().reshape(-1, *shape[-2:]).numpy():
        for group in np.split(copy, 4, axis=1):  # [B, V]
            mean = group.mean(0)
            spread.append(np.exp(np.mean([-sum(p * math.log(p) for p in row) for row in group])))
            usage.append(math.exp(-sum(p * math.log(p) for p in mean)))
            used.append(len({int(row.argmax()) for row in group}))
            dead += [all(row[v] <= 1 / 3 for row in group) for v in range(3)]
    assert d.perplexity(code, 4).item() == pytest.approx(np.mean(spread), rel=1e-5)
    assert d.usage_perplexity(code, 4).item() == pytest.approx(np.mean(usage), rel=1e-5)
    assert d.vertices_in_use(code, 4).item() == pytest.approx(np.mean(used))
    assert d.dead_vertices(code, 4).item() == pytest.approx(np.mean(dead))


def test_groups_are_contiguous_and_their_order_and_that_of_vertices_do_not_matter() -> None:
    always_first = simplicial(randn(6, 5, seed=1) + torch.tensor([9.0, 0, 0, 0, 0]), 1)
    code = torch.cat([codes(6, 5, groups=1), always_first], -1)
    swapped = torch.cat([code[:, 5:].flip(1), code[:, :5]], -1)
    for measure in (d.perplexity, d.usage_perplexity, d.vertices_in_use, d.dead_vertices):
        parts = [measure(part, 1).item() for part in (code[:, :5], code[:, 5:])]
        assert parts[0] != parts[1]
        assert measure(code, 2).item() == pytest.approx(np.mean(parts))
        assert measure(swapped, 2).item() == pytest.approx(measure(code, 2).item())


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_batch_spreads_over_at_least_what_its_codes_do(scale: float) -> None:
    code = codes(20, 12, scale=scale)
    assert 1 <= d.perplexity(code, 4) < d.usage_perplexity(code, 4) <= 3
    same = code[:1].expand(20, -1)
    torch.testing.assert_close(d.perplexity(same, 4), d.usage_perplexity(same, 4))
    # what is on top of a sample has more than an even share
    assert d.vertices_in_use(code, 4) <= 3 * (1 - d.dead_vertices(code, 4))


def test_the_picture_shows_the_mean_of_each_vertex() -> None:
    mean = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])  # always the first; an even share
    picture = d.simplex_image(mean.flatten().expand(7, -1), 2, cell=3)
    assert picture.shape == (1, 6, 12)
    blocks = picture[0].unfold(0, 3, 3).unfold(1, 3, 3)  # [2, 4, 3, 3]
    shades = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]])
    torch.testing.assert_close(blocks, shades[..., None, None].expand(2, 4, 3, 3))
    wide = d.simplex_image(torch.full((2, 64), 1 / 64), 1, cell=1)
    torch.testing.assert_close(wide, torch.full((1, 1, 64), 0.5))


def test_the_picture_averages_the_batch_and_stacks_critics() -> None:
    code = codes(Q, 10, 12)
    picture = d.simplex_image(code, 4, cell=1)
    assert picture.shape == (1, Q * 4, 3)
    for q in range(Q):
        torch.testing.assert_close(picture[:, 4 * q : 4 * q + 4], d.simplex_image(code[q], 4, cell=1))
    torch.testing.assert_close(picture[0] ** math.log2(3), code.mean(1).reshape(Q * 4, 3))
    assert picture.min() >= 0 and picture.max() <= 1


def test_tensorboard_takes_the_picture() -> None:
    # with the format that `SummaryWriter.add_image` has by default
    value = image("sem/actor", d.simplex_image(codes(5, 12), 4, cell=8), dataformats="CHW").value[0]
    assert (value.image.height, value.image.width) == (32, 24)


# ---- online and target network ---------------------------------------------------------------------------------------


def test_vertex_agreement_counts_groups_with_the_same_top() -> None:
    online = one_hot([[0, 1], [2, 2]], 3)
    target = 0.6 * one_hot([[0, 1], [2, 0]], 3) + 0.4 / 3
    assert d.vertex_agreement(online, target, 2).item() == pytest.approx(3 / 4)
    both = torch.stack([online, online]), torch.stack([target, online])
    assert d.vertex_agreement(*both, 2).item() == pytest.approx(7 / 8)
    sharp = codes(50, 12, scale=1.0), codes(50, 12, scale=5.0)  # the same logits at another temperature
    assert d.vertex_agreement(*sharp, 4).item() == 1
    chance = d.vertex_agreement(codes(3000, 12), codes(3000, 12, seed=1), 4).item()
    assert abs(chance - 1 / 3) < 0.03


def test_cosine_agreement_is_the_mean_cosine() -> None:
    online = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([[0.0, 3.0], [1.0, 0.0], [-5.0, 0.0], [1.0, 0.0]])
    assert d.cosine_agreement(online, target).item() == pytest.approx((0 + math.sqrt(0.5) - 1 + 0) / 4)
    features = randn(Q, 6, 5)
    scales = randn(Q, 6, 1, seed=1).abs()
    torch.testing.assert_close(d.cosine_agreement(features, scales * features).item(), 1.0, **exact)


# ---- critics ---------------------------------------------------------------------------------------------------------


def test_td_error_is_the_mean_absolute_difference_for_every_shape_of_target() -> None:
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    target = torch.tensor([2.0, 0.0])
    for shaped in (target, target[None], target.expand(2, 2)):
        assert d.td_error(value, shaped).item() == pytest.approx((1 + 2 + 1 + 4) / 4)
    assert d.td_error(value, value) == 0
    with pytest.raises(RuntimeError, match="expand"):
        d.td_error(value[0], target[None].expand(2, 2))  # would be a mean over pairs of strangers
    with pytest.raises(RuntimeError, match="expand"):
        d.td_error(torch.zeros(5, 1), torch.zeros(5))


@pytest.mark.parametrize("critics", [1, 2, 3, 5])
def test_disagreement_is_the_mean_over_pairs(critics: int) -> None:
    value = randn(critics, 9)
    pairs = [(value[i] - value[j]).abs().mean() for i in range(critics) for j in range(i)]
    expected = torch.stack(pairs).mean() if pairs else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(d.disagreement(value), expected)
    torch.testing.assert_close(d.disagreement(value + 5), expected)


def cramer_by_pairs(p: np.ndarray, q: np.ndarray, support: np.ndarray) -> float:
    """E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2, which equals the integral of (F - G)^2."""
    distance = np.abs(support[:, None] - support[None])
    return float(p @ distance @ q - p @ distance @ p / 2 - q @ distance @ q / 2)


@pytest.mark.parametrize("support", [np.linspace(-10.0, 10.0, 21), np.array([-3.0, -2.5, 0.0, 1.0, 7.0])])
def test_cramer_distance_is_half_the_energy_distance(support: np.ndarray) -> None:
    p, q = (randn(2, 6, len(support), seed=seed).mul(2).softmax(-1) for seed in (0, 1))
    flat = zip(p.flatten(0, 1).numpy(), q.flatten(0, 1).numpy(), strict=True)
    expected = np.mean([cramer_by_pairs(a, b, support) for a, b in flat])
    found = d.cramer_distance(p, q, torch.from_numpy(support))
    torch.testing.assert_close(found.item(), float(expected), **exact)
    torch.testing.assert_close(d.cramer_distance(q, p, torch.from_numpy(support)), found)
    torch.testing.assert_close(d.cramer_distance(p, q, 3 * torch.from_numpy(support) - 2), 3 * found)
    narrow = d.cramer_distance(p.float(), q.float(), torch.from_numpy(support).float())
    assert narrow.item() == pytest.approx(found.item(), rel=1e-5)


def test_cramer_distance_of_two_certain_returns_is_their_distance() -> None:
    support = torch.linspace(-10, 10, 21)
    certain = torch.eye(21)
    assert d.cramer_distance(certain[4:5], certain[11:12], support).item() == pytest.approx(7)
    assert d.cramer_distance(certain[:1], certain[-1:], support).item() == pytest.approx(20)
    assert d.cramer_distance(certain, certain, support).item() == 0


def test_clipped_mass_is_what_lies_beyond_the_ends() -> None:
    support = torch.linspace(-2, 2, 5)
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.25, 0.15]])
    for shift, below, above in ((0, 0, 0), (1, 0, 0.15), (2, 0, 0.4), (-1, 0.1, 0), (-3, 0.6, 0), (9, 0, 1)):
        found = d.clipped_mass(probs, (support + shift)[None], support)
        assert (found.below.item(), found.above.item()) == pytest.approx((below, above)), shift
    stretched = d.clipped_mass(probs, (2 * support)[None], support)  # -4, -2, 0, 2, 4: the ends of the support are in
    assert tuple(map(float, stretched)) == pytest.approx((0.1, 0.15))


def test_clipped_mass_is_what_projection_puts_on_the_ends() -> None:
    # The outermost atoms stay away from the two cells at the ends, so that only what is clipped arrives there.
    support = torch.linspace(-1, 1, 41)
    probs, atoms = randn(2, 50, 41).softmax(-1).float(), 1.3 * randn(50, 41, seed=1).float()
    atoms = atoms.where((atoms.abs() < 0.94) | (atoms.abs() > 1), 0.0)
    projected = project(probs, atoms, support)
    found = d.clipped_mass(probs, atoms, support)
    assert found.below.item() == pytest.approx(projected[..., 0].mean().item(), rel=1e-4) != 0
    assert found.above.item() == pytest.approx(projected[..., -1].mean().item(), rel=1e-4) != found.below.item()


def test_suggested_range_leaves_out_the_tails_and_no_more() -> None:
    probs, atoms = randn(2, 30, 11).mul(3).softmax(-1), 5 * randn(30, 11, seed=1)
    weight = probs.mean(0).flatten() / 30
    for tail in (0.3, 0.05, 0.001):
        low, high = d.suggested_range(probs, atoms, tail)
        flat = atoms.flatten()
        assert weight[flat < low].sum() <= tail < weight[flat <= low].sum()
        assert weight[flat > high].sum() <= tail + 1e-12 < weight[flat >= high].sum() + 2e-12
    low, high = d.suggested_range(probs, atoms, 0.0)
    assert low == atoms.min() and high == atoms.max()
    two = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([[-3.0, -9, 9], [9, 99, 4]])
    for tail in (0.0, 0.001):
        assert tuple(map(float, d.suggested_range(*two, tail))) == (-3, 4), "atoms without probability do not count"


def test_within_the_suggested_range_little_is_clipped() -> None:
    support = torch.linspace(-1, 1, 51)
    probs, atoms = randn(400, 51).softmax(-1), (0.99 * support + randn(400, 1)).double()
    low, high = d.suggested_range(probs, atoms, 0.01)
    assert sum(d.clipped_mass(probs, atoms, support)) > 0.1
    found = d.clipped_mass(probs, atoms, torch.linspace(low.item(), high.item(), 51, dtype=torch.float64))
    assert 0.005 < found.below <= 0.01 + 1e-9 and 0.005 < found.above <= 0.01 + 1e-9


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_gradient_norm_is_that_of_all_parameters_together() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert d.gradient_norm(net).item() == 0
    net[0](torch.ones(1, 3)).sum().backward()  # the second layer has none
    # d/dW is 1 for 12 weights, d/db for 4 biases
    assert d.gradient_norm(net).item() == pytest.approx(4)


def test_gradient_noise_of_known_gradients() -> None:
    slopes = randn(6, 5) + 2
    found = d.gradient_noise(iter(slopes))
    mean, scatter = slopes.numpy().mean(0), np.cov(slopes.numpy(), rowvar=False)
    np.testing.assert_allclose(found.mean.numpy(), mean)
    assert found.norm.item() == pytest.approx(np.linalg.norm(mean))
    assert found.variance.item() == pytest.approx(np.trace(scatter))


def test_gradient_noise_of_a_network_is_that_of_its_micro_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x, flat = torch.randn(32, 4), Flat(net.parameters())

    def losses(count: int) -> list[Tensor]:
        return [net(part).square().mean() for part in x.chunk(count)]

    found = d.gradient_noise(flat.gradient(loss) for loss in losses(8))
    losses(1)[0].backward()
    torch.testing.assert_close(found.norm, d.gradient_norm(net))  # the mean over parts is that over the whole
    alike = d.gradient_noise([flat.gradient(net(x).mean()) for _ in range(3)])
    assert alike.variance.item() == pytest.approx(0, abs=1e-12)


def test_the_variance_of_one_gradient_is_unknown() -> None:
    alone = d.gradient_noise([torch.ones(2)])
    assert alone.mean.tolist() == [1, 1] and alone.variance.isnan()
    with pytest.raises(ValueError, match="no gradient"):
        d.gradient_noise([])


def test_a_gradient_is_described_per_sample() -> None:
    """Norm 3, and variance 8 of what 5 samples give, so 40 of what one gives."""
    noise = d.GradientNoise(torch.tensor([0.0, 3.0]), torch.tensor(3.0), torch.tensor(8.0).double())
    said = to_floats(d.describe_gradient("actor", noise, 5))
    assert said == pytest.approx(
        {"gradient/actor_norm": 3, "gradient/actor_variance": 40, "gradient/actor_noise_scale": 40 / 9}
    )


def test_the_variance_of_a_sample_does_not_depend_on_the_parts() -> None:
    slopes = randn(4_000, 7).float()
    for size in (10, 100):
        noise = d.gradient_noise(part.mean(0) for part in slopes.split(size))
        assert d.describe_gradient("a", noise, size)["gradient/a_variance"].item() == pytest.approx(7, rel=0.1)


@pytest.mark.parametrize(("rows", "sizes"), [(32, [8] * 4), (30, [7] * 4), (4, [1] * 4), (3, [1] * 3), (1, [1])])
def test_micro_batches_are_of_equal_size(rows: int, sizes: list[int]) -> None:
    parts = d.micro_batches(TensorDict({"x": torch.arange(rows)}, [rows]))
    assert [len(part) for part in parts] == sizes
    assert torch.cat([part["x"] for part in parts]).tolist() == list(range(sum(sizes)))


def test_what_is_drawn_in_between_is_not_drawn() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with d.undrawn(torch.device("cpu")):
        assert torch.equal(torch.rand(2), expected)
    assert torch.equal(torch.rand(2), expected)


# ---- policies --------------------------------------------------------------------------------------------------------


def test_churn_of_actions_is_their_mean_absolute_change() -> None:
    old = torch.tensor([[0.0, 1.0], [0.5, -0.5]])
    new = torch.tensor([[0.5, 1.0], [-0.5, -0.5]])
    assert d.action_churn(new, old).item() == pytest.approx(1.5 / 4)
    with pytest.raises(RuntimeError, match="expand"):
        d.action_churn(new[:, :1], old)


def test_churn_of_categorical_policies() -> None:
    old = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3]])
    new = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.0, 0.5]])
    assert d.greedy_churn(new.log(), old.log()).item() == pytest.approx(1 / 2)
    assert d.greedy_churn(new, old).item() == pytest.approx(1 / 2)
    assert d.total_variation(new, old).item() == pytest.approx((0.1 + 0.4) / 2)
    certain = torch.eye(3)
    assert d.total_variation(certain, certain.roll(1, 1)).item() == 1
    assert d.total_variation(old, old).item() == d.greedy_churn(old, old).item() == 0


# ---- a network at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [None, Q])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("sem", [None, SEMConfig(2, 5)])
def test_activations_are_those_after_each_hidden_layer(sem: SEMConfig | None, norm: bool, copies: int | None) -> None:
    torch.manual_seed(0)
    torso, width = mlp_torso(6, (12, 8, 10), sem, copies, "silu", norm)
    x = torch.randn(7, 6)
    found = d.activations(torso, x)
    size = 3 if norm else 2
    ends = [size, 2 * size, len(torso)]
    assert len(found.hidden) == 3
    for end, layer in zip(ends, found.hidden, strict=True):
        assert torch.equal(layer, torso[:end](x))
    assert torch.equal(found.before, torso[: 2 * size](x)) and torch.equal(found.after, torso(x))
    assert found.after.shape == (() if copies is None else (Q,)) + (7, width)
    if sem is not None:
        assert torch.equal(torso[-1](found.before), found.after)


def test_activations_of_short_torsos() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 6)
    single, _ = mlp_torso(6, (12,), SEMConfig(2, 5))
    found = d.activations(single, x)
    assert torch.equal(found.before, x) and torch.equal(found.hidden[0], single(x))
    empty, _ = mlp_torso(6, ())
    found = d.activations(empty, x)
    assert found.before is found.after is x and not found.hidden
    assert d.describe_torso("actor", empty, x) == {}


def test_activations_of_convolutions_have_a_unit_per_channel() -> None:
    torch.manual_seed(0)
    cnn, width = nature_cnn((3, 36, 44))
    head, _ = mlp_torso(width, (20,), SEMConfig(2, 5))
    image = torch.randint(256, (2, 3, 36, 44), dtype=torch.uint8)
    with torch.no_grad():
        for conv, bias in ((cnn[1], 9.0), (cnn[3], 99.0), (cnn[5], 9999.0)):
            conv.bias.fill_(bias)
        cnn[1].bias[4] = -1e6  # a channel that never fires
        cnn[5].bias[:16] = -1e9
        found = d.activations(cnn, image)
        both = d.activations(nn.Sequential(*cnn, *head), image)
        assert [layer.shape[-1] for layer in found.hidden] == [32, 64, 64]
        first = cnn[:3](image)
        assert torch.equal(found.hidden[0].reshape(2, *first.shape[2:], 32), first.permute(0, 2, 3, 1))
        assert torch.equal(found.after, cnn(image)) and torch.equal(both.before, found.after)
        assert torch.equal(both.after, head(cnn(image))) and both.after.shape == (2, 10)
    assert found.before is not found.hidden[2] and torch.equal(found.before, found.hidden[1])
    assert [d.dormant(layer).item() for layer in found.hidden] == [1 / 32, 0, 1 / 4]
    said = d.describe_torso("shared", cnn, image)
    assert said["repr/shared_network_dormant"].item() == pytest.approx(17 / 160)


REPR = {"effective_rank", "srank", "dormant", "dormant_tau", "feature_norm", "gini"}
SIMPLEX = {"perplexity", "usage_perplexity", "vertices_in_use", "dead_vertices"}


@pytest.mark.parametrize("shape", [(9, 12), (1, 12), (Q, 9, 12)])
def test_a_description_holds_every_measure_under_its_name(shape: tuple[int, ...]) -> None:
    features = codes(*shape)
    plain = d.describe_features("actor", features)
    assert set(plain) == {f"repr/actor_{name}" for name in REPR}
    said = plain | d.describe_codes("actor", features, 4)
    assert set(said) == set(plain) | {f"sem/actor_{name}" for name in {*SIMPLEX, "entropy"}}
    assert torch.equal(said["sem/actor_entropy"], entropy(features, 4))
    for name in REPR:
        assert torch.equal(said[f"repr/actor_{name}"], getattr(d, name)(features)), name
    for name in SIMPLEX:
        assert torch.equal(said[f"sem/actor_{name}"], getattr(d, name)(features, 4)), name
    # as the log takes them; a batch of one is no exception
    assert all(math.isfinite(value) for value in to_floats(said).values())


@pytest.mark.parametrize("sem", [None, SEMConfig(2, 5)])
@pytest.mark.parametrize("copies", [None, Q])
def test_a_network_is_described_before_and_after_its_block(copies: int | None, sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    torso, _ = mlp_torso(6, (12, 10), sem, copies)
    x = torch.randn(64, 6)
    with torch.no_grad():
        torso[0].bias[...] = torch.tensor([-1e6] * 3 + [9.0] * 9)  # 3 of 22 units are dead, and none by chance
        if sem is None:
            torso[2].bias += 99
    found = d.activations(torso, x)
    said = d.describe_torso("critic", torso, x)
    expected = d.describe_features("critic_trunk", found.before) | d.describe_features("critic", found.after)
    assert (found.codes is found.after) == (sem is not None)
    expected |= d.describe_codes("critic", found.after, sem.groups) if sem is not None else {}
    network = {f"repr/critic_{name}" for name in ("network_dormant", "network_dormant_tau", "weight_norm")}
    assert set(said) == set(expected) | network
    for tag, value in expected.items():
        assert torch.equal(said[tag], value), tag
    assert said["repr/critic_trunk_dormant"].item() == pytest.approx(3 / 12)
    assert said["repr/critic_network_dormant"].item() == pytest.approx(3 / 22)
    assert torch.equal(said["repr/critic_weight_norm"], d.weight_norm(torso))
    assert all(not value.requires_grad for value in said.values())
    assert len(to_floats(said)) == len(said)


def one_copy(torso: nn.Sequential, copy: int) -> nn.Sequential:
    """One copy of a batched torso as a torso of its own, which still thinks that it is a batched one."""
    alone = deepcopy(torso)
    for parameter in alone.parameters():
        parameter.data = parameter.data[copy : copy + 1].clone()
    return alone


@pytest.mark.parametrize("hidden", [(12, 10), (10,)])
@pytest.mark.parametrize("sem", [None, SEMConfig(2, 5)])
def test_copies_are_described_one_by_one(sem: SEMConfig | None, hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    torso, _ = mlp_torso(6, hidden, sem, Q)
    with torch.no_grad():
        first = torso[0].linear if isinstance(torso[0], SEM) else torso[0]
        first.weight[1] *= 3  # copies that cannot be mistaken for each other
        first.bias[2] -= 1
    x = torch.randn(64, 6)
    said = d.describe_copies("abc", torso, x)
    assert len(said) == Q * len(d.describe_torso("a", torso, x))
    for copy, name in enumerate("abc"):
        for tag, value in d.describe_torso(name, one_copy(torso, copy), x).items():
            torch.testing.assert_close(said[tag], value, rtol=1e-4, atol=1e-6, msg=tag)
    assert len({said[f"repr/{name}_feature_norm"].item() for name in "abc"}) == Q
    assert all(value.numel() == 1 and not value.requires_grad for value in said.values())


def test_simplices_are_drawn_where_there_are_some() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    alone, several, plain = (
        mlp_torso(6, (12, 10), s, c)[0] for s, c in ((SEMConfig(2, 5), None), (SEMConfig(2, 5), Q), (None, None))
    )
    image = d.draw_torso(["actor"], alone, x)["sem/actor_simplices"]
    assert torch.equal(image, d.simplex_image(alone(x), 2)) and image.shape == (1, 16, 40)
    stacked = d.draw_torso(["critic"], several, x)["sem/critic_simplices"]
    each = [image for tag, image in d.draw_torso("abc", several, x).items() if tag.endswith("_simplices")]
    assert torch.equal(torch.cat(each, 1), stacked) and stacked.shape == (1, Q * 16, 40)
    assert not [tag for tag in d.draw_torso(["a"], plain, x) if tag.startswith("sem/")]
    assert d.draw_torso(["a"], nn.Sequential(), x) == {}


@torch.no_grad()
def test_values_for_histograms_are_those_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    torso = mlp_torso(6, (12, 10), SEMConfig(2, 5), Q)[0]
    found = d.draw_torso(["a"], torso, x)
    before, after = torso[:-1](x), torso(x)
    assert torch.equal(found["repr/a_features"], after.flatten())
    assert torch.equal(found["repr/a_trunk_features"], before.flatten())
    assert torch.equal(found["sem/a_largest"], after.unflatten(-1, (2, 5)).amax(-1).flatten())
    second = d.draw_torso("abc", torso, x)
    assert torch.equal(second["repr/b_features"], after[1].flatten())
    assert torch.equal(second["sem/c_largest"], after[2].unflatten(-1, (2, 5)).amax(-1).flatten())
    monkeypatch.setattr(d, "VALUES", 100)
    few = d.draw_torso(["a"], torso, x)["repr/a_features"]
    assert torch.equal(few, after.flatten()[:: -(-Q * 640 // 100)]) and len(few) <= 100


@pytest.mark.parametrize("sem", [None, SEMConfig(2, 5)])
def test_a_target_network_is_compared_with_its_origin(sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    torso, other = (mlp_torso(6, (12, 10), sem, 2)[0] for _ in range(2))
    x = torch.randn(64, 6)
    plain, same = d.describe_torso("critic", torso, x), d.describe_torso("critic", torso, x, deepcopy(torso))
    agreement = {"repr/critic_cosine_agreement": d.cosine_agreement(torso(x), other(x))}
    if sem is not None:
        agreement["sem/critic_vertex_agreement"] = d.vertex_agreement(torso(x), other(x), 2)
    assert same.keys() - plain.keys() == agreement.keys()
    for tag, value in agreement.items():
        assert same[tag].item() == pytest.approx(1)
        assert torch.equal(d.describe_torso("critic", torso, x, other)[tag], value) and value < 0.95


def test_returns_are_described_by_name() -> None:
    support = torch.linspace(-1, 1, 5)
    logits, target = 3 * randn(2, 7, 5).float(), randn(1, 7, 5, seed=1).softmax(-1).float()
    atoms = randn(7, 1, seed=2).float() + 0.9 * support
    said = d.describe_returns(logits, target, atoms, support)
    probs = logits.softmax(-1)
    value = (probs * support).sum(-1)
    learned = (project(target, atoms, support) * support).sum(-1)
    suggested = d.suggested_range(target, atoms)
    expected = {
        "critic/disagreement": (value[0] - value[1]).abs().mean(),
        "critic/cramer_distance": d.cramer_distance(probs[0], probs[1], support),
        "critic/td_error": (value - learned).abs().mean(),
        "critic/target_mass_below": d.clipped_mass(target, atoms, support).below,
        "critic/target_mass_above": d.clipped_mass(target, atoms, support).above,
        "critic/suggested_v_min": suggested[0],
        "critic/suggested_v_max": suggested[1],
    }
    assert said.keys() == expected.keys()
    for tag, number in expected.items():
        torch.testing.assert_close(said[tag], number, msg=tag)


def test_returns_that_are_certain() -> None:
    support = torch.linspace(0, 4, 5)
    logits = torch.full((2, 1, 5), -1e9)
    logits[0, 0, 1] = logits[1, 0, 4] = 0.0  # returns of 1 and of 4
    target = F.one_hot(torch.tensor([[2]]), 5).float()
    said = to_floats(d.describe_returns(logits, target, 3.5 + support[None], support))  # 5.5, of which 4 is learned
    assert said["critic/disagreement"] == said["critic/cramer_distance"] == 3
    assert said["critic/td_error"] == 1.5
    assert (said["critic/target_mass_below"], said["critic/target_mass_above"]) == (0, 1)
    assert said["critic/suggested_v_min"] == said["critic/suggested_v_max"] == 5.5


def test_copies_are_the_mean_of_each() -> None:
    features, other = codes(Q, 9, 12), codes(Q, 9, 12, seed=1)
    features[1] = features[1, :1]  # the same code for every sample
    for name, measure in CASES.items():
        if name not in ("simplex_image", "disagreement"):
            each = torch.stack([measure(features[q], other[q]) for q in range(Q)])
            assert each.min() != each.max(), name
            torch.testing.assert_close(measure(features, other), each.mean(), msg=name)


# ---- all of them -----------------------------------------------------------------------------------------------------


def total(said: dict[str, Tensor]) -> Tensor:
    return torch.stack([value.double() for value in said.values()]).sum()


@cache
def torso_on(device: str, copies: int | None = None) -> nn.Sequential:
    """A torso with gradients, the same on each device."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torso, _ = mlp_torso(12, (8, 10), SEMConfig(2, 5), copies)
    torso(torch.ones(1, 12)).square().sum().backward()
    return torso.to(device)


def grid(x: Tensor) -> Tensor:
    return torch.arange(12, dtype=x.dtype, device=x.device)


CASES: dict[str, Callable[..., Tensor]] = {
    "effective_rank": lambda x, y: d.effective_rank(x),
    "srank": lambda x, y: d.srank(x),
    "spectral_ranks": lambda x, y: torch.stack(d.spectral_ranks(x)).sum(),
    "dormant": lambda x, y: d.dormant(x - 0.5),
    "dormant_tau": lambda x, y: d.dormant_tau(x, 0.8),
    "feature_norm": lambda x, y: d.feature_norm(x),
    "gini": lambda x, y: d.gini(x),
    "perplexity": lambda x, y: d.perplexity(x, 4),
    "usage_perplexity": lambda x, y: d.usage_perplexity(x, 4),
    "vertices_in_use": lambda x, y: d.vertices_in_use(x, 4),
    "dead_vertices": lambda x, y: d.dead_vertices(x, 4),
    "simplex_image": lambda x, y: d.simplex_image(x, 4),
    "vertex_agreement": lambda x, y: d.vertex_agreement(x, y, 4),
    "cosine_agreement": lambda x, y: d.cosine_agreement(x, y),
    "td_error": lambda x, y: d.td_error(x, y),
    "disagreement": lambda x, y: d.disagreement(x),
    "cramer_distance": lambda x, y: d.cramer_distance(x / 4, y / 4, grid(x)),
    "clipped_mass": lambda x, y: sum(d.clipped_mass(x, (grid(x) * 1.3 - 2).expand(9, -1), grid(x))),
    "action_churn": lambda x, y: d.action_churn(x, y),
    "greedy_churn": lambda x, y: d.greedy_churn(x, y),
    "total_variation": lambda x, y: d.total_variation(x, y),
}
WHOLE: dict[str, Callable[..., Tensor]] = {  # not a mean over copies
    "suggested_range": lambda x, y: torch.stack(d.suggested_range(x, y if y.dim() == 2 else y[0])).sum(),
    "gradient_noise": lambda x, y: torch.stack([v.double() for v in d.gradient_noise(x.unbind())[1:]]).sum(),
    "describe_gradient": lambda x, y: total(d.describe_gradient("a", d.gradient_noise(x.unbind()), 3)),
    "gradient_norm": lambda x, y: d.gradient_norm(torso_on(x.device.type)),
    "weight_norm": lambda x, y: d.weight_norm(torso_on(x.device.type)),
    "weight_norms": lambda x, y: d.weight_norms(torso_on(x.device.type)),
    "describe_features": lambda x, y: total(d.describe_features("a", x)),
    "describe_codes": lambda x, y: total(d.describe_codes("a", x, 4)),
    "describe_torso": lambda x, y: total(
        d.describe_torso("a", *(torso_on(x.device.type), x if x.dim() == 2 else x[0], torso_on(x.device.type)))
    ),
    "describe_copies": lambda x, y: total(
        d.describe_copies("abc", torso_on(x.device.type, Q), x if x.dim() == 2 else x[0])
    ),
    "draw_torso": lambda x, y: torch.stack(
        [
            *(v.sum() for v in d.draw_torso(["a"], torso_on(x.device.type), x).values()),
            *(v.sum() for v in d.draw_torso("abc", torso_on(x.device.type, Q), x).values()),
        ]
    ).sum(),
    "describe_returns": lambda x, y: total(
        d.describe_returns(torch.stack([x, y]), x[None], y, grid(x))
        if x.dim() == 2
        else d.describe_returns(x[:2], y[:1], x[2], grid(x))
    ),
}
HELPERS = {
    *("wide", "simplices", "units", "singular_values", "activations", "last_block"),
    *("describe_activations", "micro_batches", "thinned", "undrawn"),
}


def test_every_function_is_among_the_cases() -> None:
    own = {name for name, f in inspect.getmembers(d, inspect.isfunction) if f.__module__ == d.__name__}
    assert own == CASES.keys() | WHOLE.keys() | HELPERS


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
@pytest.mark.parametrize("shape", [(9, 12), (Q, 9, 12)])
def test_nothing_is_drawn_or_changed_or_read_by_the_host(name: str, shape: tuple[int, ...]) -> None:
    measure = {**CASES, **WHOLE}[name]
    x, y = codes(*shape), codes(*shape, seed=1)
    kept = x.clone(), y.clone()
    state = torch.get_rng_state()
    first = measure(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1])
    assert torch.equal(measure(x, y), first)
    assert first.numel() == 1 or name == "simplex_image"
    assert first.isfinite().all()
    # A tensor on the meta device has no values: whoever looks at one, or waits for one, fails.
    assert measure(x.to("meta"), y.to("meta")).device.type == "meta"


def test_looking_at_a_value_is_noticed() -> None:
    for look in (lambda x: x.item(), bool, lambda x: x.nonzero(), lambda x: torch.arange(3, device="meta")[x.long()]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            look(torch.zeros((), device="meta"))


def test_a_sem_block_is_known_by_its_config() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    said = d.describe_torso("actor", nn.Sequential(SEM(6, SEMConfig(2, 4))), x)
    assert "sem/actor_entropy" in said and not [tag for tag in said if tag.startswith("sem/actor_trunk")]
