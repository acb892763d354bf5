"""Residual torsos against plain computations in float64, their starts, and what stays on the sphere in learning."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import envs
from agents import fastsac, fasttd3, ppo
from networks.bottlenecks import Bottleneck
from networks.diagnostics import activations, describe_copies, describe_torso, weight_norm
from networks.flat import AdamW, Flat
from networks.layers import BatchedLayerNorm, BatchedLinear
from networks.residual import Scale, SimbaBlock, SphereBlock, SphereEmbedding, UnitLinear, spheres
from networks.sem import SEM, SEMConfig
from networks.torso import Torso, hidden_layers, residual_torso

Q = 3
RESIDUAL: tuple[Torso, ...] = ("simba", "simbav2")
every_kind = pytest.mark.parametrize("kind", RESIDUAL)


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scatter(module: nn.Module) -> nn.Module:
    """Move all parameters away from their starts, so that none is 0, 1 or the same as another."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator) * p.abs().mean().clamp(min=0.1))
    return module


def lone(x: Tensor) -> Tensor:
    return x.double() / x.double().square().sum(-1, keepdim=True).sqrt()


# ---- the formulas ----------------------------------------------------------------------------------------------------


def simba_by_hand(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Of a torso of two blocks: arXiv 2410.09754, figure 4."""

    def norm(h: Tensor, name: str) -> Tensor:
        centred = h - h.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]
        )

    h = x.double() @ p["0.weight"].T + p["0.bias"]
    for i in (1, 2):
        inner = norm(h, f"{i}.norm") @ p[f"{i}.expand.weight"].T + p[f"{i}.expand.bias"]
        h = h + inner.clamp(min=0) @ p[f"{i}.contract.weight"].T + p[f"{i}.contract.bias"]
    return norm(h, "3")


def simbav2_by_hand(p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Of a torso of two blocks of 8 units: arXiv 2502.15280, section 4, with factors as in its own code."""
    shifted = lone(torch.cat([x, torch.full((len(x), 1), 3.0)], -1))
    h = lone(shifted @ p["0.linear.weight"] * p["0.scale.weight"])
    for i in (1, 2):
        inner = (h @ p[f"{i}.expand.weight"] * p[f"{i}.scale.weight"]).clamp(min=0)
        towards = lone(inner @ p[f"{i}.contract.weight"])
        share = p[f"{i}.share.weight"] * math.sqrt(8) / 3
        h = lone((1 - share) * h + share * towards)
    return h


@every_kind
def test_a_torso_is_the_formula(kind: Torso) -> None:
    torch.manual_seed(0)
    torso, width = hidden_layers(kind, 5, (8, 8))
    scatter(torso)
    p = {name: value.detach().double() for name, value in torso.named_parameters()}
    by_hand = {"simba": simba_by_hand, "simbav2": simbav2_by_hand}[kind]
    x = inputs(7, 5)
    assert width == 8
    torch.testing.assert_close(torso(x).double(), by_hand(p, x), rtol=1e-4, atol=1e-5)


@every_kind
@pytest.mark.parametrize("sem", [None, SEMConfig(2, 4)])
def test_copies_are_as_many_torsos(kind: Torso, sem: SEMConfig | None) -> None:
    torch.manual_seed(0)
    several, _ = hidden_layers(kind, 5, (8, 8, 6), sem, Q)
    scatter(several)
    x = inputs(7, 5)
    for copy, out in enumerate(several(x)):
        alone, _ = hidden_layers(kind, 5, (8, 8, 6), sem)
        state = {}
        for (name, mine), theirs in zip(alone.state_dict().items(), several.state_dict().values(), strict=True):
            one = theirs[copy]
            layer = alone.get_submodule(name.rpartition(".")[0])
            state[name] = one.T if isinstance(layer, nn.Linear) and mine.dim() == 2 else one.reshape(mine.shape)
        alone.load_state_dict(state)
        torch.testing.assert_close(alone(x), out, rtol=1e-4, atol=1e-6)


@every_kind
def test_parameters_are_counted(kind: Torso) -> None:
    torso, _ = hidden_layers(kind, 5, (8, 8))
    block = 8 * 32 + 32 * 8
    own = {"simba": 6 * 8 + 2 * (16 + block + 32 + 8) + 16, "simbav2": 6 * 8 + 8 + 2 * (block + 32 + 8)}
    assert sum(p.numel() for p in torso.parameters()) == own[kind]


# ---- starts ----------------------------------------------------------------------------------------------------------


def test_simba_starts_with_an_orthogonal_embedding_and_he_s_weights() -> None:
    torch.manual_seed(0)
    for copies in (None, 2):
        torso, _ = hidden_layers("simba", 30, (200,), None, copies)
        embed, block, norm = torso
        assert isinstance(block, SimbaBlock) and isinstance(norm, nn.LayerNorm | BatchedLayerNorm)
        matrix = embed.weight if copies is None else embed.weight[1].T
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(30), atol=1e-5, rtol=0)
        for layer, fan_in in ((block.expand, 200), (block.contract, 800)):
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        assert not any(layer.bias.any() for layer in (embed, block.expand, block.contract))


def test_simbav2_starts_with_orthogonal_units_and_a_step_for_each_block() -> None:
    torch.manual_seed(0)
    torso, _ = hidden_layers("simbav2", 5, (64, 64, 64), SEMConfig(2, 4))  # SEM in place of the third
    assert [type(m) for m in torso] == [SphereEmbedding, SphereBlock, SphereBlock, SEM]
    block = torso[1]
    inner = block.contract.weight  # [256, 64]
    torch.testing.assert_close(inner.T @ inner, torch.eye(64), atol=1e-5, rtol=0)
    share = block.share(torch.ones(64))
    torch.testing.assert_close(share, torch.full((64,), 1 / 3))
    assert block.share.weight[0].item() == pytest.approx(1 / 8) and torso[0].scale.weight[0].item() == pytest.approx(
        math.sqrt(2 / 64)
    )
    assert block.scale.weight[0].item() == pytest.approx(math.sqrt(2 / 256)) and block.scale.ratio == 1


# ---- on the sphere ---------------------------------------------------------------------------------------------------


def lengths(layers: list[UnitLinear]) -> Tensor:
    return torch.cat([layer.weight.square().sum(-2).flatten() for layer in layers])


@pytest.mark.parametrize("copies", [None, Q])
def test_features_and_weights_stay_on_their_spheres(copies: int | None) -> None:
    torch.manual_seed(0)
    net, _ = hidden_layers("simbav2", 5, (8, 8), None, copies)
    flat = Flat(net.parameters(), spheres(net))
    optimizer = AdamW(flat, 0.1, weight_decay=0.1)
    before = flat.vector.detach().clone()
    assert len(spheres(net)) == 5
    for seed in range(5):
        out = net(inputs(7, 5, seed=seed))
        torch.testing.assert_close(out.square().sum(-1), torch.ones(out.shape[:-1]))
        flat.differentiate((out * inputs(8, seed=9)).sum())
        optimizer.step()
        torch.testing.assert_close(lengths(spheres(net)), torch.ones(len(lengths(spheres(net)))))
    assert (flat.vector - before).abs().mean() > 0.01
    assert spheres(net)[0].weight.data_ptr() == flat.vector.data_ptr()  # still views
    twin = deepcopy(net)
    plain = AdamW(Flat(twin.parameters()), 0.1)
    plain.vector.grad = torch.ones_like(plain.vector)
    plain.step()
    assert (lengths(spheres(twin)) - 1).abs().max() > 0.01  # what is not told of them leaves them


def test_a_vector_of_zeros_has_no_direction() -> None:
    block = SphereBlock(4, 1)
    with torch.no_grad():
        block.expand.weight.neg_().abs_().neg_()  # all units below 0: nothing is active
    x = torch.full((2, 4), 0.5, requires_grad=True)
    out = block(x)
    torch.testing.assert_close(out, x)
    out.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_observations_of_different_length_stay_apart() -> None:
    torch.manual_seed(0)
    embed = SphereEmbedding(5, 8)
    x = inputs(1, 5)
    assert (embed(x) - embed(2 * x)).abs().max() > 0.05


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [None, 2])
def test_streams_end_where_the_width_changes_or_a_block_is_replaced(copies: int | None) -> None:
    line, norm = ("Linear", "LayerNorm") if copies is None else ("BatchedLinear", "BatchedLayerNorm")
    block, sphere = "SimbaBlock", "SphereBlock"
    for hidden, sem, simba, simbav2 in (
        ((8, 8), None, [line, block, block, norm], ["SphereEmbedding", sphere, sphere]),
        ((8, 6), None, [line, block, norm, line, block, norm], 2 * ["SphereEmbedding", sphere]),
        ((8, 8), "last", [line, block, norm, "SEM"], ["SphereEmbedding", sphere, "SEM"]),
        ((8, 8), "input", ["SEM", line, block, norm], ["SEM", "SphereEmbedding", sphere]),
        ((8, 8), "every", ["SEM", "SEM"], ["SEM", "SEM"]),
        ((), None, [], []),
    ):
        config = None if sem is None else Bottleneck(2, 4, position=sem)  # type: ignore[arg-type]
        for kind, expected in (("simba", simba), ("simbav2", simbav2)):
            torso, width = residual_torso(kind, 5, hidden, config, copies)  # type: ignore[arg-type]
            assert [type(m).__name__ for m in torso] == expected
            assert torso(inputs(7, 5)).shape[-1] == width
            shifted = [m.shift for m in torso if isinstance(m, SphereEmbedding)]
            assert shifted == [i == 0 and sem in (None, "last") for i in range(len(shifted))]


@every_kind
def test_impossible_sizes_are_refused(kind: Torso) -> None:
    for hidden, sem, message in (
        ((8, 0), None, "at least one unit"),
        ((), SEMConfig(2, 4), "a layer that SEM replaces"),
    ):
        with pytest.raises(ValueError, match=message):
            hidden_layers(kind, 5, hidden, sem)


@every_kind
def test_a_residual_torso_is_described(kind: Torso) -> None:
    torch.manual_seed(0)
    torso, _ = hidden_layers(kind, 5, (8, 8, 6), SEMConfig(2, 4), 2)
    x = inputs(64, 5)
    found = activations(torso, x)
    assert [h.shape[-1] for h in found.hidden] == [8, 8, 8]
    assert torch.equal(found.before, torso[:-1](x)) and torch.equal(found.after, torso(x))
    said, each = describe_torso("a", torso, x, torso), describe_copies("ab", torso, x)
    for tag, value in said.items():
        assert value.isfinite() and (tag in each or "agreement" in tag), tag
    expected = sum(
        p[1].detach().double().square().sum() for n, p in torso.named_parameters() if p.dim() == 3 and p.shape[1] > 1
    )
    assert each["repr/b_weight_norm"].item() == pytest.approx(math.sqrt(expected))
    alone, _ = hidden_layers(kind, 5, (8, 8))
    matrices = [p.detach() for p in alone.parameters() if p.dim() == 2]
    assert weight_norm(alone).item() == pytest.approx(math.sqrt(sum(m.square().sum() for m in matrices)), rel=1e-5)


@every_kind
def test_half_precision_is_near(kind: Torso) -> None:
    torch.manual_seed(0)
    torso, _ = hidden_layers(kind, 5, (16, 16), SEMConfig(2, 4), 2)
    x = inputs(64, 5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = torso(x)
    torch.testing.assert_close(rough.float(), torso(x), atol=0.03, rtol=0.1)
    assert rough.dtype == torch.float32


# ---- in the agents ---------------------------------------------------------------------------------------------------

SIZES = {"env_id": "PointMass-v0", "num_envs": 4, "actor_hidden": (8, 8), "critic_hidden": (8, 8), "amp": "off"}


@pytest.mark.parametrize("module", [fasttd3, fastsac, ppo])
def test_agents_have_the_torso_that_they_are_told(module) -> None:
    env = envs.make("PointMass-v0", 4, 0)
    cls = {"fasttd3": "FastTD3", "fastsac": "FastSAC", "ppo": "PPO"}[module.__name__.removeprefix("agents.")]
    for kind, block in (("simba", SimbaBlock), ("simbav2", SphereBlock)):
        agent = getattr(module, cls)(replace(module.Args(), **SIZES, torso=kind), env)
        blocks = [m for m in agent.modules.modules() if isinstance(m, block)]
        assert len(blocks) == (2 if cls == "PPO" else 6)  # actor, critic, target; PPO's two are copies of one
        plain = getattr(module, cls)(replace(module.Args(), **SIZES), env)
        with pytest.raises(ValueError, match=r"the checkpoint does not fit: .* --torso"):
            plain.load_state_dict(agent.state_dict())


def test_exports_of_one_copy_know_the_parts() -> None:
    from agents.export import first_copy

    torch.manual_seed(0)
    for kind in RESIDUAL:
        torso, _ = hidden_layers(kind, 5, (8, 8), None, Q)
        scatter(torso)
        x = inputs(7, 5)
        expected = torso(x)[0]
        torch.testing.assert_close(first_copy(deepcopy(torso))(x), expected, rtol=1e-4, atol=1e-6)
        assert not [m for m in first_copy(torso).modules() if isinstance(m, BatchedLinear)]
        assert all(m.weight.dim() == 2 for m in torso.modules() if isinstance(m, UnitLinear | Scale))
