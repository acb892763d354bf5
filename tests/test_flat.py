"""Parameters as one vector: the same numbers as torch's own tools give one by one."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from networks.flat import AdamW, Flat, RAdam
from networks.sem import SEMConfig
from networks.torso import mlp_torso, nature_cnn


def network() -> nn.Module:
    torch.manual_seed(0)
    torso, width = mlp_torso(5, (16, 8), SEMConfig(2, 4), copies=2)
    return nn.Sequential(torso, nn.Linear(width, 3))


def test_the_network_stays_as_it_is_and_shares_memory_with_the_vector() -> None:
    plain, flat_one = network(), network()
    x = torch.randn(7, 5)
    before = plain(x)
    flat = Flat(flat_one.parameters())
    assert torch.equal(flat_one(x), before)
    assert [(n, p.shape) for n, p in plain.named_parameters()] == [(n, p.shape) for n, p in flat_one.named_parameters()]
    assert flat.vector.numel() == sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        flat.vector.mul_(2)
    for mine, theirs in zip(flat_one.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, 2 * theirs) and mine.requires_grad and mine.is_leaf
    flat_one.load_state_dict(plain.state_dict())  # loading moves the vector
    assert torch.equal(flat.vector, torch.cat([p.reshape(-1) for p in plain.parameters()]))


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_gradient_clipping_and_steps_equal_those_of_torch(max_norm: float) -> None:
    plain, flat_one = network(), network()
    flat = Flat(flat_one.parameters())
    one = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.1, fused=True)
    two = AdamW(flat, lr=0.01, weight_decay=0.1)
    for step in range(5):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        one.zero_grad()
        plain(x).square().sum().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), max_norm)
        one.step()
        flat.differentiate(flat_one(x).square().sum())
        flat.clip(max_norm)
        two.step()
        assert all(p.grad is None for p in flat_one.parameters())
        for mine, theirs in zip(flat_one.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_gradients_by_outputs_are_carried_on() -> None:
    net = network()
    flat = Flat(net.parameters())
    x = torch.randn(7, 5)
    flat.differentiate(3 * net(x).square().sum())
    whole = flat.vector.grad.clone()
    out = net(x)
    flat.differentiate([out], [6 * out.detach()])
    torch.testing.assert_close(flat.vector.grad, whole)


def test_a_gradient_that_is_only_looked_at() -> None:
    net = network()
    flat = Flat(net.parameters())
    x = torch.randn(7, 5)
    hidden = net[0](x)
    of_torso = flat.gradient([hidden], [2 * hidden.detach()], again=True)
    whole = flat.gradient(net[1](hidden).square().sum())
    assert flat.vector.grad is None
    assert torch.equal(whole, flat.differentiate(net(x).square().sum()))
    torch.testing.assert_close(of_torso[:-15], flat.gradient(net[0](x).square().sum())[:-15])
    assert torch.equal(of_torso[-27:], torch.zeros(27))  # the 8 x 3 + 3 of the head, of which nothing is in there


def test_lerp_moves_a_share_of_the_way() -> None:
    net = network()
    target = deepcopy(net)
    one, two = Flat(target.parameters()), Flat(net.parameters())
    with torch.no_grad():
        two.vector.add_(1)
    expected = one.vector.detach() + 0.25
    one.lerp(two, 0.25)
    torch.testing.assert_close(one.vector.detach(), expected)
    assert torch.equal(target[1].bias, one.vector[-3:])
    one.lerp(two, 1.0)
    assert torch.equal(one.vector, two.vector)


def test_convolutions_in_any_memory_format() -> None:
    layers, _ = nature_cnn((4, 84, 84))
    x = torch.randint(0, 255, (2, 4, 84, 84), dtype=torch.uint8)
    expected = layers(x)
    flat = Flat(layers.to(memory_format=torch.channels_last).parameters())
    torch.testing.assert_close(layers(x), expected, rtol=1e-4, atol=1e-5)
    flat.differentiate(layers(x).sum())
    mine = flat.vector.grad.split([p.numel() for p in layers.parameters()])
    grads = torch.autograd.grad(layers(x).sum(), list(layers.parameters()))
    for piece, grad in zip(mine, grads, strict=True):
        torch.testing.assert_close(piece.view(grad.shape), grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_optimiser_is_that_of_torch_bit_for_bit(weight_decay: float) -> None:
    one, two = Flat(network().parameters()), Flat(network().parameters())
    betas, eps = (0.8, 0.95), 1e-5
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    theirs = kind([one.vector], lr=torch.tensor(0.02), betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
    mine = AdamW(two, 0.02, betas, eps, weight_decay)
    for step in range(6):
        grad = torch.randn(one.vector.numel(), generator=torch.Generator().manual_seed(step))
        one.vector.grad, two.vector.grad = grad.clone(), grad.clone()
        for lr in (theirs.param_groups[0]["lr"], mine.lr):
            lr.mul_(0.9)
        theirs.step()
        mine.step()
        assert torch.equal(one.vector, two.vector)
        if step == 2:  # goes on from what was saved
            saved = deepcopy(mine.state_dict())
            mine.step()
            mine = AdamW(two, 1.0, betas, eps, weight_decay)
            mine.load_state_dict(saved)
            with torch.no_grad():
                two.vector.copy_(one.vector)
    assert mine.count == 6


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.9), (0.9, 0.5)])
def test_radam_is_that_of_torch(betas: tuple[float, float]) -> None:
    """Before and after its first step that goes by the second moment too; a short memory never knows enough of it."""
    one, two = Flat(network().parameters()), Flat(network().parameters())
    theirs = torch.optim.RAdam([one.vector], lr=0.02, betas=betas, eps=1e-3)
    mine = RAdam(two, 0.02, betas, 1e-3)
    start = two.vector.detach().clone()
    for step in range(1, 41):
        grad = torch.randn(one.vector.numel(), generator=torch.Generator().manual_seed(step))
        one.vector.grad, two.vector.grad = grad.clone(), grad.clone()
        theirs.param_groups[0]["lr"] *= 0.9
        mine.lr.mul_(0.9)
        before = two.vector.detach().clone()
        theirs.step()
        mine.step()
        torch.testing.assert_close(two.vector, one.vector, rtol=1e-5, atol=1e-7)
        if step == 1:  # along the gradient, however small
            torch.testing.assert_close(before - two.vector.detach(), 0.02 * 0.9 * grad, rtol=1e-4, atol=1e-7)
        if step in (3, 20):  # goes on from what was saved
            saved = deepcopy(mine.state_dict())
            mine = RAdam(two, 1.0, betas, 1e-3)
            mine.load_state_dict(saved)
    assert mine.count == mine.steps == 40 and (two.vector - start).abs().mean() > 1e-3


def test_a_rehearsal_leaves_everything_as_it_was() -> None:
    flat = Flat(network().parameters())
    optimizer = AdamW(flat, 0.01, weight_decay=0.1)
    flat.vector.grad = torch.ones_like(flat.vector)
    optimizer.step()
    before = [x.clone() for x in (flat.vector.detach(), flat.vector.grad, *optimizer.state_dict().values())]
    with pytest.raises(ZeroDivisionError), optimizer.rehearsal():
        flat.vector.grad = torch.randn_like(flat.vector)
        optimizer.lr.fill_(1.0)
        optimizer.step()
        assert not any(map(torch.equal, before, (flat.vector, flat.vector.grad, *optimizer.state_dict().values())))
        raise ZeroDivisionError
    after = flat.vector, flat.vector.grad, *optimizer.state_dict().values()
    assert all(map(torch.equal, before, after))
    assert torch.equal(flat.parameters[0].flatten(), flat.vector[: flat.parameters[0].numel()])  # still views
