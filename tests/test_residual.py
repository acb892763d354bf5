"""Residual torsos against plain computations in float64, their starts, what stays on the sphere, and batch norms."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

import envs
from agents import fastsac, fasttd3, ppo, pqn
from networks.bottlenecks import Bottleneck
from networks.critics import project
from networks.diagnostics import activations, describe_copies, describe_torso, weight_norm
from networks.flat import AdamW, Flat
from networks.layers import BatchedLayerNorm, BatchedLinear
from networks.normalize import BatchNorm, ByBatch, alone
from networks.residual import (
    FlashBlock,
    FlashEmbedding,
    RMSNorm,
    Scale,
    SimbaBlock,
    SphereBlock,
    SphereEmbedding,
    UnitLinear,
    batch_norms,
    by_batch,
    spheres,
)
from networks.sem import SEM, SEMConfig
from networks.torso import Torso, hidden_layers, residual_torso

Q = 3
RESIDUAL: tuple[Torso, ...] = ("simba", "simbav2", "flashsac")
every_kind = pytest.mark.parametrize("kind", RESIDUAL)


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scatter(module: nn.Module) -> nn.Module:
    """Move all parameters and statistics away from their starts, so that none is 0, 1 or the same as another."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator) * p.abs().mean().clamp(min=0.1))
        for norm in batch_norms(module):
            norm.mean.normal_(generator=generator)
            norm.variance.uniform_(0.3, 3, generator=generator)
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


def flashsac_by_hand(p: dict[str, Tensor], x: Tensor, own: bool = False) -> Tensor:
    """Of a torso of two blocks: arXiv 2604.04539; by running statistics, or by those of x's `own` rows."""

    def norm(h: Tensor, name: str) -> Tensor:
        mean, variance = p[f"{name}.mean"], p[f"{name}.variance"]
        if own:
            mean = h.sum(0) / len(h)
            variance = ((h - mean) ** 2).sum(0) / len(h)
        return (h - mean) / (variance + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    h = norm(x.double(), "0.norm") @ p["0.linear.weight"]
    for i in (1, 2):
        inner = norm(h @ p[f"{i}.expand.weight"], f"{i}.expand_norm").clamp(min=0)
        h = h + norm(inner @ p[f"{i}.contract.weight"], f"{i}.contract_norm").clamp(min=0)
    return h / ((h**2).mean(-1, keepdim=True) + 1e-6).sqrt() * p["3.weight"]


def in_float64(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().double() for name, value in module.state_dict().items()}


@every_kind
def test_a_torso_is_the_formula(kind: Torso) -> None:
    torch.manual_seed(0)
    torso, width = hidden_layers(kind, 5, (8, 8))
    scatter(torso)
    p = in_float64(torso)
    by_hand = {"simba": simba_by_hand, "simbav2": simbav2_by_hand, "flashsac": flashsac_by_hand}[kind]
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
        single, _ = hidden_layers(kind, 5, (8, 8, 6), sem)
        state = {}
        for (name, mine), theirs in zip(single.state_dict().items(), several.state_dict().values(), strict=True):
            one = theirs[copy]
            layer = single.get_submodule(name.rpartition(".")[0])
            state[name] = one.T if isinstance(layer, nn.Linear) and mine.dim() == 2 else one.reshape(mine.shape)
        single.load_state_dict(state)
        torch.testing.assert_close(single(x), out, rtol=1e-4, atol=1e-6)


@every_kind
def test_parameters_are_counted(kind: Torso) -> None:
    torso, _ = hidden_layers(kind, 5, (8, 8))
    block = 8 * 32 + 32 * 8
    own = {
        "simba": 6 * 8 + 2 * (16 + block + 32 + 8) + 16,
        "simbav2": 6 * 8 + 8 + 2 * (block + 32 + 8),
        "flashsac": 2 * 5 + 5 * 8 + 2 * (block + 2 * 32 + 2 * 8) + 8,
    }
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


@pytest.mark.parametrize("copies", [None, 2])
def test_flashsac_starts_with_orthogonal_units_and_norms_that_change_nothing_else(copies: int | None) -> None:
    torch.manual_seed(0)
    torso, _ = hidden_layers("flashsac", 5, (64, 64, 64), SEMConfig(2, 4), copies)  # SEM in place of the third
    assert [type(m) for m in torso] == [FlashEmbedding, FlashBlock, FlashBlock, RMSNorm, SEM]
    inner = torso[1].contract.weight if copies is None else torso[1].contract.weight[1]  # [256, 64]
    torch.testing.assert_close(inner.T @ inner, torch.eye(64), atol=1e-5, rtol=0)
    for norm in batch_norms(torso):
        shape = (1, norm.weight.shape[-1]) if copies is None else (copies, 1, norm.weight.shape[-1])
        for x, start in ((norm.weight, 1.0), (norm.bias, 0.0), (norm.mean, 0.0), (norm.variance, 1.0)):
            assert torch.equal(x, torch.full(shape, start))
    assert len(batch_norms(torso)) == 5 and bool((torso[3].weight == 1).all())


# ---- on the sphere ---------------------------------------------------------------------------------------------------


def lengths(layers: list) -> Tensor:
    """What is 1 on the sphere: squared lengths of units, and of gains and biases over their number."""
    squares = []
    for layer in layers:
        if isinstance(layer, UnitLinear):
            squares.append(layer.weight.square().sum(-2))
        elif isinstance(layer, RMSNorm):
            squares.append(layer.weight.square().mean(-1))
        else:
            squares.append((layer.weight.square() + layer.bias.square()).mean(-1))
    return torch.cat([square.flatten() for square in squares])


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


@pytest.mark.parametrize("copies", [None, Q])
def test_weights_gains_and_biases_of_flashsac_stay_on_theirs(copies: int | None) -> None:
    torch.manual_seed(0)
    net, _ = hidden_layers("flashsac", 5, (8, 8), None, copies)
    flat = Flat(net.parameters(), spheres(net))
    optimizer = AdamW(flat, 0.1, weight_decay=0.1)
    before = flat.vector.detach().clone()
    assert [type(layer).__name__ for layer in spheres(net)] == [
        *("BatchNorm", "UnitLinear"),
        *2 * ("UnitLinear", "BatchNorm", "UnitLinear", "BatchNorm"),
        "RMSNorm",
    ]
    assert flat.vector.numel() == sum(x.numel() for layer in spheres(net) for x in layer.parameters())  # nothing else
    for seed in range(5):
        out = by_batch(net, inputs(7, 5, seed=seed))
        flat.differentiate((out * inputs(8, seed=9)).sum())
        optimizer.step()
        torch.testing.assert_close(lengths(spheres(net)), torch.ones(len(lengths(spheres(net)))))
    assert (flat.vector - before).abs().mean() > 0.01
    assert bool(all(norm.bias.abs().max() > 0.01 for norm in batch_norms(net)))


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


# ---- batch norms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [((6, 3), (1, 3)), ((2, 6, 3), (2, 1, 3)), ((6, 3), (2, 1, 3))])
def test_gradients_by_batch_are_those_of_the_formula(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Of one network, of two copies, and of two that share what they see."""
    x, gain, bias = (inputs(*shape, seed=seed).double() for seed, shape in enumerate((shapes[0], *2 * shapes[1:])))
    for p in (x, gain, bias):
        p.requires_grad_()
    weight = inputs(2, 6, 3, seed=5).double()
    centred = x - x.mean(-2, keepdim=True)
    expected = centred / (centred.square().mean(-2, keepdim=True) + 1e-5).sqrt() * gain + bias
    out, mean, variance = ByBatch.apply(x, gain, bias, 1e-5, alone)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(mean, x.mean(-2, keepdim=True))
    torch.testing.assert_close(variance, x.var(-2, correction=0, keepdim=True))
    found, wanted = (torch.autograd.grad((y * weight).sum(), (x, gain, bias)) for y in (out, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("copies", [None, Q])
def test_by_batch_is_the_formula_with_the_rows_beside(copies: int | None) -> None:
    torch.manual_seed(0)
    torso, _ = hidden_layers("flashsac", 5, (8, 8), None, copies)
    scatter(torso)
    x, beside = inputs(7, 5), 3 + inputs(9, 5, seed=1)
    outs = by_batch(torso, x, (beside[:, :2], beside[:, 2:]))
    for copy in range(copies or 1):
        p = {n: v if copies is None else v[copy] for n, v in in_float64(torso).items()}
        expected = flashsac_by_hand(p, torch.cat([x, beside]), own=True)
        out = outs if copies is None else outs[copy]
        torch.testing.assert_close(out.double(), expected[:7], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            (by_batch(torso, x) if copies is None else by_batch(torso, x)[copy]).double(),
            flashsac_by_hand(p, x, own=True),
            rtol=1e-4,
            atol=1e-5,
        )
    assert (outs - by_batch(torso, x)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["mlp", "simba", "simbav2"])
def test_without_batch_norms_nothing_is_done_by_batch(kind: Torso) -> None:
    torso, _ = hidden_layers(kind, 5, (8, 8))
    x = inputs(7, 5)
    assert torch.equal(by_batch(torso, x, [inputs(9, 5, seed=1)]), torso(x)) and not batch_norms(torso)


def test_statistics_move_when_they_are_told_to_and_only_then() -> None:
    norm = BatchNorm(3, 2)
    x, other = 5 + inputs(40, 3), inputs(2, 40, 3, seed=1)
    before = deepcopy(norm.state_dict())
    assert set(before) == {"weight", "bias", "mean", "variance"}
    rows = norm(x)
    assert torch.equal(norm(x[:1]), rows[:, :1])  # of the others it knows nothing
    norm(other, True), norm(x, True), norm(other)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    norm.learn()
    torch.testing.assert_close(norm.mean, 0.01 * x.mean(0).expand(2, 1, 3))
    torch.testing.assert_close(norm.variance, 0.99 + 0.01 * x.var(0, correction=0).expand(2, 1, 3))
    for _ in range(2_000):
        norm(other, True)
        norm.learn()
    torch.testing.assert_close(norm(other), norm(other, True), rtol=1e-4, atol=1e-4)


def test_a_single_row_is_finite() -> None:
    torso, _ = hidden_layers("flashsac", 5, (8, 8))
    out = by_batch(torso, inputs(1, 5))
    out.sum().backward()
    assert out.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in torso.parameters())


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [None, 2])
def test_streams_end_where_the_width_changes_or_a_block_is_replaced(copies: int | None) -> None:
    line, norm = ("Linear", "LayerNorm") if copies is None else ("BatchedLinear", "BatchedLayerNorm")
    block, sphere = "SimbaBlock", "SphereBlock"
    names = {line: "FlashEmbedding", block: "FlashBlock", norm: "RMSNorm"}  # FlashSAC's streams are SimBa's
    for hidden, sem, simba, simbav2 in (
        ((8, 8), None, [line, block, block, norm], ["SphereEmbedding", sphere, sphere]),
        ((8, 6), None, [line, block, norm, line, block, norm], 2 * ["SphereEmbedding", sphere]),
        ((8, 8), "last", [line, block, norm, "SEM"], ["SphereEmbedding", sphere, "SEM"]),
        ((8, 8), "input", ["SEM", line, block, norm], ["SEM", "SphereEmbedding", sphere]),
        ((8, 8), "every", ["SEM", "SEM"], ["SEM", "SEM"]),
        ((), None, [], []),
    ):
        config = None if sem is None else Bottleneck(2, 4, position=sem)  # type: ignore[arg-type]
        flashsac = [names.get(name, name) for name in simba]
        for kind, expected in (("simba", simba), ("simbav2", simbav2), ("flashsac", flashsac)):
            torso, width = residual_torso(kind, 5, hidden, config, copies)  # type: ignore[arg-type]
            assert [type(m).__name__ for m in torso] == expected
            assert torso(inputs(7, 5)).shape[-1] == by_batch(torso, inputs(7, 5), [inputs(3, 5)]).shape[-1] == width
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
    single, _ = hidden_layers(kind, 5, (8, 8))
    matrices = [p.detach() for p in single.parameters() if p.dim() == 2 and p.shape[0] > 1]
    assert weight_norm(single).item() == pytest.approx(math.sqrt(sum(m.square().sum() for m in matrices)), rel=1e-5)


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
    for kind, block in (("simba", SimbaBlock), ("simbav2", SphereBlock), ("flashsac", FlashBlock)):
        agent = getattr(module, cls)(replace(module.Args(), **SIZES, torso=kind), env)
        blocks = [m for m in agent.modules.modules() if isinstance(m, block)]
        assert len(blocks) == (2 if cls == "PPO" else 6)  # actor, critic, target; PPO's two are copies of one
        plain = getattr(module, cls)(replace(module.Args(), **SIZES), env)
        with pytest.raises(ValueError, match=r"the checkpoint does not fit: .* --torso"):
            plain.load_state_dict(agent.state_dict())


def in_flash_agent(kind: str, **changes) -> tuple:
    """An agent on FlashSAC's blocks with statistics that are not their starts, and a prepared batch."""
    module, name = {"fasttd3": (fasttd3, "FastTD3"), "fastsac": (fastsac, "FastSAC")}[kind]
    changes = {**SIZES, "torso": "flashsac", "env_id": "PointMassPrivileged-v0", "v_min": -3.0, "v_max": 3.0, **changes}
    args = replace(module.Args(), **changes)
    torch.manual_seed(0)
    env = envs.make(args.env_id, 4, 0)
    agent = getattr(module, name)(args, env)
    for network in (agent.actor, agent.critic, agent.target):
        scatter(network)
    with torch.no_grad():
        for critic in (agent.critic, agent.target):
            critic.head.weight.mul_(5)
    sizes = {"obs": env.obs_space.shape[0], "critic_obs": env.critic_obs_space.shape[0]}
    sizes |= {f"next_{name}": size for name, size in sizes.items()}
    batch = {name: inputs(16, size, seed=i) for i, (name, size) in enumerate(sizes.items())}
    batch |= {"action": inputs(16, 2, seed=7).tanh(), "reward": inputs(16, seed=8), "discount": torch.full((16,), 0.9)}
    return agent, TensorDict(batch, [16])


def critics_by_hand(critic: nn.Module, pair: Tensor, own: bool) -> Tensor:
    """Probabilities [Q, B, K] of two critics for [B, C + A]."""
    p, out = in_float64(critic), []
    for q in (0, 1):
        one = {name.removeprefix("torso."): value[q] for name, value in p.items() if name != "support"}
        logits = flashsac_by_hand(one, pair, own) @ one["head.weight"] + one["head.bias"]
        out.append(logits.softmax(-1))
    return torch.stack(out)


def actor_by_hand(actor: nn.Module, obs: Tensor, own: bool) -> Tensor:
    p = {name.removeprefix("torso."): value for name, value in in_float64(actor).items()}
    return flashsac_by_hand(p, obs, own) @ p["head.weight"].T + p["head.bias"]


def test_what_goes_by_which_statistics() -> None:
    """Critics and target by those of both steps in one batch; the actor too where it learns, and else by running ones.

    And so do the critics that the actor learns from.
    """
    agent, batch = in_flash_agent("fasttd3", policy_noise=0.0, clipped_double_q=False)
    support = agent.critic.support.double()
    next_action = actor_by_hand(agent.actor, batch["next_obs"], False).tanh()
    now, later = (
        torch.cat([batch["critic_obs"].double(), batch["action"].double()], -1),
        torch.cat([batch["next_critic_obs"].double(), next_action], -1),
    )
    next_probs = critics_by_hand(agent.target, torch.cat([later, now]), True)[:, :16]
    atoms = batch["reward"][:, None].double() + 0.9 * support
    target = project(next_probs, atoms, support)
    probs = critics_by_hand(agent.critic, torch.cat([now, later]), True)[:, :16]
    expected = -(target * probs.log()).sum(-1).mean(-1).sum()
    assert agent.critic_loss(batch).item() == pytest.approx(expected.item(), rel=1e-4)

    action = actor_by_hand(agent.actor, torch.cat([batch["obs"], batch["next_obs"]]), True)[:16].tanh()
    value = critics_by_hand(agent.critic, torch.cat([batch["critic_obs"].double(), action], -1), False) @ support
    assert agent.actor_loss(batch).item() == pytest.approx(-value.mean().item(), rel=1e-4)


@pytest.mark.parametrize("torso", ["mlp", "flashsac"])
def test_the_critics_loss_is_one_graph_for_a_compiler(torso: Torso) -> None:
    agent, batch = in_flash_agent("fasttd3", torso=torso, policy_noise=0.0)
    compiled = torch.compile(agent.critic_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch), agent.critic_loss(batch))


@pytest.mark.parametrize("kind", ["fasttd3", "fastsac"])
def test_an_update_moves_the_statistics_of_what_it_trains_and_of_the_target(kind: str) -> None:
    agent, batch = in_flash_agent(kind, policy_frequency=2)

    def statistics() -> dict[str, list[Tensor]]:
        networks = {"actor": agent.actor, "critic": agent.critic, "target": agent.target}
        return {name: [norm.mean.clone() for norm in batch_norms(x)] for name, x in networks.items()}

    def moved(before: dict[str, list[Tensor]]) -> set[str]:
        after = statistics()
        return {n for n in before if not all(map(torch.equal, before[n], after[n]))}

    kept = {name: x.clone() for name, x in agent.modules.state_dict().items()}
    agent.gradient(batch)
    agent.report(batch)
    agent.draw(batch)
    agent.act(batch["obs"])
    agent.explore(batch["obs"][:4])
    assert all(torch.equal(kept[name], x) for name, x in agent.modules.state_dict().items())
    for expected in ({"critic", "target"}, {"critic", "target", "actor"}):
        before = statistics()
        agent.update(batch)
        assert moved(before) == expected
    pair = torch.cat([batch["critic_obs"], batch["action"]], -1)
    first = agent.critic.torso[0].norm
    next_pair = torch.cat([batch["next_critic_obs"], torch.zeros(16, 2)], -1)  # what the actor did is not known here
    seen = agent.critic_obs_norm(torch.cat([pair, next_pair])[:, :-2]).mean(0)
    torch.testing.assert_close(first.seen_mean[..., :-2], seen.expand_as(first.seen_mean[..., :-2]))


def test_pqn_learns_by_batch_and_acts_by_running_statistics() -> None:
    args = {"env_id": "ClosedFormDiscrete-v0", "num_envs": 4, "critic_hidden": (8, 8), "amp": "off"}
    agent = pqn.PQN(replace(pqn.Args(), **args, torso="flashsac"), envs.make("ClosedFormDiscrete-v0", 4, 0))
    scatter(agent.critic)
    p = {name.removeprefix("torso."): value for name, value in in_float64(agent.critic).items()}
    obs = inputs(16, 1)
    batch = {
        "obs": obs,
        "action": torch.arange(16) % 2,
        "target": inputs(16, seed=1),
        "weight": torch.full((16,), 1 / 16),
    }
    for own, found in ((False, agent(obs)), (True, agent(obs, True))):
        expected = flashsac_by_hand(p, obs, own) @ p["head.weight"].T + p["head.bias"]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(agent.differentiate(batch), agent(obs, True).gather(-1, batch["action"][:, None])[:, 0])


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
        assert all(m.weight.dim() == 2 for m in torso.modules() if isinstance(m, UnitLinear | Scale | BatchNorm))
