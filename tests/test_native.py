"""networks/native.py: what norm.cpp computes is what torch does, and where there is no compiler torch does it."""

import os
import shutil
import subprocess
import sys
import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

from networks import native
from networks.layers import NORM_EPS, BatchedLayerNorm, Layers
from networks.sem import SEM, SEMConfig, told
from networks.torso import Activation, mlp_torso

found = native.library()
EVERY = [native.RELU, native.SILU, *native.WIDTHS]
built = pytest.mark.skipif(isinstance(found, str), reason=f"torch computes SEM here: {found}")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def inputs(copies: int | None, rows: int, width: int, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, gain, bias and the derivative by the output."""
    torch.manual_seed(0)
    lead, affine = ([], [width]) if copies is None else ([copies], [copies, 1, width])
    x = 3 * torch.randn(*lead, rows, width) + torch.randn(*lead, rows, 1)
    return x, spread * (torch.rand(affine) + 0.5), spread * torch.randn(affine), torch.randn(*lead, rows, width)


def by_torch(after: int, x: Tensor, gain: Tensor, bias: Tensor, tau: float) -> Tensor:
    normed = torch.addcmul(bias, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), gain)
    if after in (native.RELU, native.SILU):
        return F.relu(normed) if after == native.RELU else F.silu(normed)
    return torch.softmax((normed / tau).unflatten(-1, (-1, after)), -1).flatten(-2)


def exact(
    x: Tensor, gain: Tensor, bias: Tensor, after: int, tau: float, grad: Tensor, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Return output and derivatives by torch."""
    leaves = [each.detach().to(dtype).requires_grad_() for each in (x, gain, bias)]
    out = by_torch(after, *leaves, tau)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]


def ours(x: Tensor, gain: Tensor, bias: Tensor, after: int, tau: float, grad: Tensor) -> list[Tensor]:
    leaves = [each.detach().requires_grad_() for each in (x, gain, bias)]
    out = native.norm_and(after, *leaves, NORM_EPS, tau)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def fused(layers: nn.Module, x: Tensor) -> bool:
    """Whether some of them are computed by our operation."""
    return any("NormAnd" in name for name in graph(layers(x).grad_fn))


def graph(node: Any) -> set[str]:
    return set() if node is None else {node.name()}.union(*(graph(each) for each, _ in node.next_functions))


def apart(mine: Tensor, reference: Tensor) -> float:
    return float((mine.double() - reference).norm() / reference.norm())


@built
@pytest.mark.parametrize("after", EVERY)
@pytest.mark.parametrize("copies", [None, 1, 3])
@pytest.mark.parametrize("rows", [1, 7, 8, 33])
def test_equals_torch_in_float64(after: int, copies: int | None, rows: int) -> None:
    for groups in (1, 2, 5):
        if (width := max(after, 1) * groups) % native.LANES:
            width *= native.LANES
        for tau in (1.0, 0.3):
            given = inputs(copies, rows, width)
            settings = *given[:3], after, tau, given[3]
            for mine, theirs, reference in zip(
                ours(*settings), exact(*settings, torch.float32), exact(*settings), strict=True
            ):
                assert mine.dtype == torch.float32 and mine.shape == reference.shape
                assert apart(mine, reference) < max(2e-6, 3 * apart(theirs, reference))


@built
@pytest.mark.parametrize("after", [4, 64])
def test_bfloat16_rounds_inputs_and_their_derivatives_only(after: int) -> None:
    x, gain, bias, grad = inputs(2, 64, 128)
    x = x.bfloat16()
    got = ours(x, gain, bias, after, 1.0, grad)
    assert [each.dtype for each in got] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    expected = exact(x, gain, bias, after, 1.0, grad)
    for index, (mine, reference) in enumerate(zip(got, expected, strict=True)):
        assert apart(mine, reference) < (2**-8 if index == 1 else 2e-6)
    wide = ours(x.float(), gain, bias, after, 1.0, grad)[1]
    assert torch.equal(got[1], wide.bfloat16())  # to the nearest, as torch rounds


@built
@pytest.mark.parametrize("after", [native.RELU, native.SILU])
@pytest.mark.parametrize("copies", [None, 2])
def test_activations_are_as_precise_as_what_comes_in(after: int, copies: int | None) -> None:
    x, gain, bias, grad = inputs(copies, 64, 128)
    x, grad = x.bfloat16(), grad.bfloat16()
    got = ours(x, gain, bias, after, 1.0, grad)
    assert [each.dtype for each in got] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    wide = ours(x.float(), gain, bias, after, 1.0, grad.float())
    for index, (mine, each) in enumerate(zip(got, wide, strict=True)):  # rounded once, at the end, to the nearest
        assert torch.equal(mine, each.bfloat16() if index < 2 else each)


@built
@pytest.mark.parametrize("after", [native.RELU, native.SILU, 4, 16, 64])
def test_many_threads_compute_the_same_rows(after: int) -> None:
    given = inputs(2, 2048, 64)
    alone = ours(*given[:3], after, 1.0, given[3])
    torch.set_num_threads(3)
    together = ours(*given[:3], after, 1.0, given[3])
    again = ours(*given[:3], after, 1.0, given[3])
    for index, (a, b, c) in enumerate(zip(alone, together, again, strict=True)):
        assert torch.equal(b, c)
        assert torch.equal(a, b) if index < 2 else apart(a, b.double()) < 1e-6  # sums over rows, in another order
        assert index < 2 or not native.ready().threaded or not torch.equal(a, b)


@built
@pytest.mark.parametrize("after", [native.RELU, native.SILU, 4])
def test_rows_do_not_depend_on_one_another(after: int) -> None:
    x, gain, bias, _ = inputs(None, 100, 64)
    with torch.no_grad():
        whole = native.norm_and(after, x, gain, bias, NORM_EPS)
        for start, end in ((0, 1), (3, 20), (97, 100)):
            piece = native.norm_and(after, x[start:end], gain, bias, NORM_EPS)
            assert torch.equal(piece, whole[start:end])
        strided = native.norm_and(after, x.T.contiguous().T, gain, bias, NORM_EPS)
        assert torch.equal(strided, whole)
        assert native.norm_and(after, x[:0], gain, bias, NORM_EPS).shape == (0, 64)
    tracked = native.norm_and(after, x.requires_grad_(), gain, bias, NORM_EPS)
    assert torch.equal(tracked.detach(), whole)
    (of_nothing,) = torch.autograd.grad(native.norm_and(after, x[:0], gain, bias, NORM_EPS).sum(), x)
    assert of_nothing.shape == x.shape and not of_nothing.any()


@built
@pytest.mark.parametrize("vertices", [2, 4, 8, 16, 128])
def test_extremes(vertices: int) -> None:
    x, gain, bias, grad = inputs(None, 16, 128, spread=1e4)  # logits far apart: exponents that no float32 has
    out, *grads = ours(x, gain, bias, vertices, 0.1, grad)
    assert out.isfinite().all() and all(each.isfinite().all() for each in grads)
    torch.testing.assert_close(out.unflatten(-1, (-1, vertices)).sum(-1), torch.ones(16, 128 // vertices))
    reference = exact(x, gain, bias, vertices, 0.1, grad)[0]
    assert (out.unflatten(-1, (-1, vertices)).argmax(-1) == reference.unflatten(-1, (-1, vertices)).argmax(-1)).all()
    even = native.norm_and(vertices, torch.full((3, 128), 7.0), torch.ones(128), torch.zeros(128), 1e-5, 1.0)
    torch.testing.assert_close(even, torch.full((3, 128), 1 / vertices))


@built
@pytest.mark.parametrize("after", [native.RELU, native.SILU])
def test_extremes_of_activations(after: int) -> None:
    x, gain, bias, grad = inputs(None, 16, 128, spread=1e4)  # exponents that no float32 has
    for mine, reference in zip(
        ours(x, gain, bias, after, 1.0, grad), exact(x, gain, bias, after, 1.0, grad), strict=True
    ):
        assert mine.isfinite().all() and apart(mine, reference) < 1e-5
    small = 10.0 ** -torch.arange(0, 32, dtype=torch.float32).repeat(2)  # of either sign, down to 1e-31
    small[32:] *= -1
    out = native.norm_and(after, torch.zeros(1, 64), torch.ones(64), small, NORM_EPS)[0]
    expected = F.relu(small) if after == native.RELU else F.silu(small)
    torch.testing.assert_close(out, expected, atol=0, rtol=1e-6)


@built
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("after", [native.RELU, native.SILU, 4, 64])
@pytest.mark.parametrize("dtype", native.DTYPES)
def test_what_is_no_number_shows_in_its_row_alone(bad: float, after: int, dtype: torch.dtype) -> None:
    x, gain, bias, grad = inputs(None, 9, 64)
    clean = ours(x.to(dtype), gain, bias, after, 1.0, grad)
    x[4, 11] = bad
    out, of_x, *_ = ours(x.to(dtype), gain, bias, after, 1.0, grad)
    others = [row for row in range(9) if row != 4]
    assert out[4].isnan().all() and of_x[4].isnan().all()
    assert torch.equal(out[others], clean[0][others]) and torch.equal(of_x[others], clean[1][others])


@built
def test_a_bias_that_is_no_number_shows_in_its_group() -> None:
    x, gain, bias, _ = inputs(None, 9, 64)
    bias[5] = float("nan")
    out = native.norm_and(4, x, gain, bias, NORM_EPS)
    assert out[:, 4:8].isnan().all() and out[:, :4].isfinite().all() and out[:, 8:].isfinite().all()


@built
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7FFFFFFF, -1])
@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize("after", [native.RELU, native.SILU, 4])
def test_every_kind_of_no_number_shows(bits: int, dtype: torch.dtype, after: int) -> None:
    bad = torch.tensor([bits & 0xFFFFFFFF], dtype=torch.int64).to(torch.int32).view(torch.float32)
    x, gain, bias, grad = inputs(None, 9, 64)
    x[4, 11:12] = bad
    assert x[4, 11].isnan()
    out, of_x, *_ = ours(x.to(dtype), gain, bias, after, 1.0, grad)
    assert out[4].isnan().all() and of_x[4].isnan().all() and out[:4].isfinite().all()
    x[4, 11] = 1.0
    bias[3] = 10.0  # where a relu has a slope
    grad[2, 3:4] = bad
    assert ours(x.to(dtype), gain, bias, after, 1.0, grad)[1][2].isnan().all()
    bias[5:6] = bad
    assert ours(x, gain, bias, after, 1.0, grad)[0][:, 4 if after == 4 else 5 : 8 if after == 4 else 6].isnan().all()


@built
def test_numbers_too_large_to_be_squared_show() -> None:
    x, gain, bias, grad = inputs(None, 9, 64)
    assert ours(1e20 * x, gain, bias, 4, 1.0, grad)[0].isnan().all()


@built
def test_what_no_float32_has_is_0() -> None:
    x, gain, bias, grad = inputs(None, 64, 64, spread=30.0)
    out = ours(x, gain, bias, 16, 0.5, grad)[0]
    assert (out == 0).any() and ((out > 0) & (out < 2**-126)).float().mean() < 0.02  # denormal numbers take their time


@built
@pytest.mark.parametrize("after", [native.RELU, native.SILU, 4])
def test_one_row_has_second_derivatives_too(after: int) -> None:
    x, gain, bias, grad = inputs(None, 1, 64)
    mine = second(x[0], gain, bias, after, 0.5, grad[0], False)
    for a, b in zip(mine, second(x[0], gain, bias, after, 0.5, grad[0], True), strict=True):
        assert a.shape == b.shape and (apart(a, b.double()) < 1e-4 or not (a.any() or b.any()))


def second(x: Tensor, gain: Tensor, bias: Tensor, after: int, tau: float, grad: Tensor, torch_only: bool) -> Any:
    """Derivatives of the squared derivatives, and the derivatives by several outputs at once."""
    x, gain, bias = (each.detach().requires_grad_() for each in (x, gain, bias))
    compute = by_torch if torch_only else lambda *given: native.norm_and(*given[:-1], NORM_EPS, tau)
    out = compute(after, x, gain, bias, tau)
    many = torch.autograd.grad(out, (x, gain, bias), torch.stack([grad, 2 * grad]), True, is_grads_batched=True)
    first = torch.autograd.grad(out, (x, gain, bias), grad, create_graph=True)
    again = torch.autograd.grad(
        sum(each.square().sum() for each in first), (x, gain, bias), allow_unused=True, materialize_grads=True
    )
    return *many, *again


@built
@pytest.mark.parametrize("copies", [None, 2])
@pytest.mark.parametrize("after", [native.RELU, native.SILU, 4])
def test_second_derivatives_and_many_at_once_are_those_of_torch(copies: int | None, after: int) -> None:
    x, gain, bias, grad = inputs(copies, 9, 64)
    mine = second(x, gain, bias, after, 0.5, grad, False)
    for a, b in zip(mine, second(x, gain, bias, after, 0.5, grad, True), strict=True):
        assert a.shape == b.shape and (apart(a, b.double()) < 1e-4 or not (a.any() or b.any()))


@built
def test_strides_of_weights_do_not_matter() -> None:
    x, gain, bias, grad = inputs(None, 9, 64)
    twice = [each.repeat_interleave(2)[::2] for each in (gain, bias)]
    assert not twice[0].is_contiguous()
    for a, b in zip(ours(x, *twice, 4, 1.0, grad), ours(x, gain, bias, 4, 1.0, grad), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        plain = native.norm_and(4, x, gain, bias, NORM_EPS)
        assert torch.equal(native.norm_and(4, x, *twice, NORM_EPS), plain)


@built
def test_defaults_of_torch_do_not_matter() -> None:
    x, gain, bias, grad = inputs(None, 9, 64)
    plain = ours(x, gain, bias, 4, 1.0, grad)
    for dtype in (torch.float64, torch.bfloat16):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            other = ours(x, gain, bias, 4, 1.0, grad)
            assert native.agrees(native.ready())
        finally:
            torch.set_default_dtype(before)
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    with torch.device("meta"):
        assert torch.equal(ours(x, gain, bias, 4, 1.0, grad)[0], plain[0])
        assert native.agrees(native.ready())
    with torch.inference_mode():
        assert native.agrees(native.ready())
        assert torch.equal(native.norm_and(4, x, gain, bias, NORM_EPS), plain[0])


@built
def test_tracers_see_what_torch_does() -> None:
    torch.manual_seed(0)
    block, x, other = SEM(5, SEMConfig(4, 16)), torch.randn(6, 5), torch.randn(6, 5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.jit is on its way out
        expected = block(other)
        torch.testing.assert_close(torch.jit.trace(block, (x,))(other), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(make_fx(block)(x)(other), expected, atol=1e-6, rtol=1e-5)
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(block(dual)).tangent is not None


@built
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux says which threads a process has")
def test_the_threads_of_torch_stay() -> None:
    torch.set_num_threads(4)
    given = inputs(None, 1024, 64)  # enough for two threads
    large, seen = torch.randn(1 << 20), set()
    for _ in range(10):
        large.exp()
        ours(*given[:3], 4, 1.0, given[3])
        seen |= set(os.listdir("/proc/self/task"))
    large.exp()
    assert seen == set(os.listdir("/proc/self/task"))


@built
def test_a_block_takes_it_where_it_can() -> None:
    x = torch.randn(6, 5)

    def by_native(block: SEM, x: Tensor = x) -> bool:
        return fused(block, x)

    assert by_native(SEM(5, SEMConfig(4, 16))) and by_native(SEM(5, SEMConfig(4, 4, 0.5, False, 0.1), 2))
    assert not by_native(SEM(5, SEMConfig(4, 5)))  # no code for it
    assert not native.suits(torch.randn(2, 80), torch.ones(80), torch.zeros(80), 64)  # 80 features are no groups of 64
    assert not by_native(SEM(5, SEMConfig(3, 4)))  # 12 features do not fill the lanes
    assert not by_native(SEM(5, SEMConfig(4, 16, 1.0, True)))  # it has no derivative by the temperature
    assert not by_native(SEM(5, SEMConfig(4, 16)).double(), x.double())
    block = SEM(5, SEMConfig(4, 16))
    each = torch.func.vmap(lambda row: block(row))(x)  # a transform looks on
    torch.testing.assert_close(each, block(x), atol=1e-6, rtol=1e-5)
    program = torch.export.export(torch.nn.Sequential(block), (x,)).module()
    torch.testing.assert_close(program(x), block(x), atol=1e-6, rtol=1e-5)


@built
def test_an_annealed_temperature_is_the_one_of_now() -> None:
    torch.manual_seed(0)
    block, x = SEM(5, SEMConfig(4, 16, 2.0, end_temperature=0.5)), torch.randn(6, 5)
    for progress, tau in ((0.0, 2.0), (0.5, 1.0), (1.0, 0.5)):
        block.anneal(progress)
        affine = block.norm.weight, block.norm.bias
        expected = exact(block.linear(x), *affine, 16, tau, torch.ones(6, 64))[0]
        assert apart(block(x).detach(), expected) < 1e-6


# ---- layers ----------------------------------------------------------------------------------------------------------


def holds(layers: nn.Sequential, x: Tensor, amp: bool) -> None:
    """What layers make of x, and its derivatives, are as near to those of float64 as torch's are."""
    for parameter in layers.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    leaves, exact = [*layers.parameters()], deepcopy(layers).double()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        mine, plain = layers(x), nn.Sequential.forward(layers, x)
    truth = nn.Sequential.forward(exact, x.double())
    assert fused(layers, x) and mine.dtype == (torch.bfloat16 if amp else torch.float32)
    grad = torch.randn_like(truth)
    three = [(mine, leaves), (plain, leaves), (truth, [*exact.parameters()])]
    for a, b, c in zip(
        *((each.detach(), *torch.autograd.grad(each, by, grad.to(each.dtype))) for each, by in three), strict=True
    ):
        assert a.shape == c.shape and apart(a, c) < max(2 * apart(b, c), 1e-5)
        assert apart(a, c) < (0.2 if amp else 1e-4)


@built
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("copies", [None, 2])
def test_norm_and_activation_of_a_torso_are_one(amp: bool, activation: Activation, copies: int | None) -> None:
    torch.manual_seed(0)
    holds(mlp_torso(5, (32, 48), None, copies, activation, norm=True)[0], torch.randn(64, 5), amp)


@built
def test_layers_are_one_only_where_that_is_what_they_are() -> None:
    x = torch.randn(9, 5)
    one = mlp_torso(5, (32,), norm=True)[0]
    assert fused(one, x)
    for other in (
        mlp_torso(5, (32,), activation="tanh", norm=True)[0],
        mlp_torso(5, (33,), norm=True)[0],
        mlp_torso(5, (32,))[0],
        Layers(nn.LayerNorm(5)),
        Layers(nn.Linear(5, 32), nn.LayerNorm((9, 32)), nn.ReLU()),
        Layers(nn.Linear(5, 32), nn.LayerNorm(32, elementwise_affine=False), nn.ReLU()),
        Layers(nn.Linear(5, 32), nn.LayerNorm(32, bias=False), nn.ReLU()),
    ):
        assert not fused(other, x)
        assert torch.equal(other(x), nn.Sequential.forward(other, x))
    uneven = Layers(nn.Linear(5, 32), nn.LayerNorm(32, eps=0.5), nn.ReLU())
    torch.testing.assert_close(uneven(x), nn.Sequential.forward(uneven, x))
    assert Layers()(x) is x


@built
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.LayerNorm(16), (6, 32)),
        (nn.LayerNorm(64), (6, 32)),
        (BatchedLayerNorm(32, 2), (6, 32)),
        (BatchedLayerNorm(32, 2), (1, 6, 32)),
        (BatchedLayerNorm(32, 2), (3, 6, 32)),
        (BatchedLayerNorm(32, 2), (5, 2, 6, 32)),
        (nn.LayerNorm(0), (6, 0)),
    ],
)
def test_shapes_are_those_of_torch(norm: nn.Module, shape: tuple[int, ...]) -> None:
    layers, x = Layers(norm, nn.ReLU()), torch.randn(shape)
    found = []
    for way in (layers, partial(nn.Sequential.forward, layers)):
        try:
            found.append(way(x))
        except RuntimeError as error:
            found.append(type(error))
    assert found[0] is found[1] if isinstance(found[1], type) else torch.equal(found[0], found[1])


@built
def test_what_is_no_float32_or_has_its_sign_elsewhere_is_left_to_torch() -> None:
    norm = BatchedLayerNorm(32, 2)
    norm.bias.data = norm.bias.data.double()
    assert not fused(Layers(norm, nn.ReLU()), torch.randn(2, 6, 32))
    layers, x = Layers(nn.LayerNorm(32), nn.ReLU()), torch.randn(6, 32)
    torch.testing.assert_close(layers(torch._neg_view(x)), layers(-x), atol=1e-6, rtol=1e-5)
    leaf = x.clone().requires_grad_()
    grads = [torch.autograd.grad(layers(leaf), leaf, grad)[0] for grad in (torch._neg_view(x), -x)]
    assert torch.equal(*grads)


@built
def test_who_looks_on_from_afar_sees_each_layer() -> None:
    torso, x, seen = mlp_torso(5, (32,), norm=True)[0], torch.randn(9, 5), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(type(module)))
    torso(x)
    handle.remove()
    assert seen[:3] == [nn.Linear, nn.LayerNorm, nn.ReLU]

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    with Mode():
        torso(x)
    assert {"layer_norm", "relu"} <= {each for each in seen if isinstance(each, str)}
    torso[1].forward = torch.zeros_like  # type: ignore[assignment]
    assert not torso(x).any()


@built
def test_who_looks_on_sees_each_layer() -> None:
    torso, x, seen = mlp_torso(5, (32,), norm=True)[0], torch.randn(9, 5), []
    for layer in torso:
        handle = layer.register_forward_hook(lambda layer, *_: seen.append(type(layer)))
        torso(x)
        assert type(layer) in seen
        handle.remove()
        seen.clear()
    torso(x)
    assert not seen and fused(torso, x)
    torch.testing.assert_close(torch.func.vmap(torso)(x), torso(x), atol=1e-6, rtol=1e-5)
    program = torch.export.export(torso, (x,)).module()
    torch.testing.assert_close(program(x), torso(x), atol=1e-6, rtol=1e-5)


# ---- the compiler ----------------------------------------------------------------------------------------------------


def anew(monkeypatch: pytest.MonkeyPatch, cache: Path, **environment: str) -> native.Library | str:
    """Return what `library` makes of an empty cache and an environment."""
    monkeypatch.setenv("SEMRL_CACHE", str(cache))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return native.library.__wrapped__()


@built
def test_what_is_built_is_kept_and_built_anew_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = anew(monkeypatch, tmp_path)
    assert isinstance(first, native.Library)
    kept = sorted((tmp_path / "native").iterdir())  # and nothing of the building
    assert all(path.suffix == ".so" for path in kept)
    before = [path.stat().st_mtime_ns for path in kept]
    assert isinstance(anew(monkeypatch, tmp_path), native.Library)
    assert sorted((tmp_path / "native").iterdir()) == kept
    if first.threaded:  # a library that cannot have torch's threads is tried anew every time
        assert [path.stat().st_mtime_ns for path in kept] == before
    for path in kept:
        path.unlink()  # not in place: this process has it
        path.write_bytes(b"")
    code = f"from networks import native; assert native.ready().threaded == {first.threaded}"
    command = [sys.executable, "-c", code]  # this process would go on with what it has loaded under that name
    assert subprocess.run(command, cwd=native.SOURCE.parents[1], timeout=300).returncode == 0
    assert all(path.stat().st_size for path in kept)


@built
def test_processes_that_build_at_once_do_not_hurt_one_another(tmp_path: Path) -> None:
    code = "from networks import native; assert isinstance(native.library(), native.Library), native.library()"
    env = {**os.environ, "SEMRL_CACHE": str(tmp_path)}
    together = [subprocess.Popen([sys.executable, "-c", code], env=env, cwd=native.SOURCE.parents[1]) for _ in range(3)]
    assert [process.wait(300) for process in together] == [0, 0, 0]
    assert all(path.suffix == ".so" for path in (tmp_path / "native").iterdir())


@built
@pytest.mark.skipif(not shutil.which("g++"), reason="its flag is one of g++")
def test_a_compiler_may_have_words_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(anew(monkeypatch, tmp_path, CXX="g++ -DUNUSED=1"), native.Library)


@built
def test_without_a_home_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SEMRL_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    why = native.library.__wrapped__()
    assert isinstance(why, str) and why.endswith("RuntimeError: Could not determine home directory.")


def test_without_a_compiler_torch_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert anew(monkeypatch, tmp_path) == "no g++ or clang++"
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = anew(monkeypatch, tmp_path, CXX=str(tmp_path / "no-such-compiler"))
    assert isinstance(absent, str) and "no-such-compiler" in absent
    broken = tmp_path / "broken"
    fails = 'echo "$*" | grep -q -e -dM && exit 0\necho "x.cpp:1: error: it is Monday" >&2\nexit 3\n'
    broken.write_text(f"#!/bin/sh\n{fails}")
    broken.chmod(0o755)
    assert anew(monkeypatch, tmp_path, CXX=str(broken)) == f"{broken} fails: x.cpp:1: error: it is Monday"
    assert list((tmp_path / "native").iterdir()) == []


@built
def test_a_cache_that_cannot_be_written_leaves_it_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    why = anew(monkeypatch, tmp_path / "file")
    assert isinstance(why, str) and "NotADirectoryError" in why


@built
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("whole = share<V>(whole);", "whole = F{} + 1.0f;"),
        ("- offset - unit * slope", "- offset + unit * slope"),
        ("z[k]);\n            }", "z[k] + 1e-3f * load(w));\n            }"),
        ("z[0] *= sigmoid(z[0]);", "z[0] *= sigmoid(1.01f * z[0]);"),
        ("s * (1.0f + z[0] * (1.0f - s))", "s * (1.0f - z[0] * (1.0f - s))"),
        ("d[0] = z[0] <= 0 ? F{} : d[0];", ""),
    ],
)
def test_what_computes_something_else_is_not_used(
    right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = native.SOURCE.read_text()
    text = source.replace(right, wrong)
    assert text != source
    (tmp_path / "norm.cpp").write_text(text)
    monkeypatch.setattr(native, "SOURCE", tmp_path / "norm.cpp")
    (tmp_path / "cache" / "native").mkdir(parents=True)
    for built_before in native.folder().glob("operation-*.so"):  # the larger part, which is the same
        shutil.copy(built_before, tmp_path / "cache" / "native")
    why = anew(monkeypatch, tmp_path / "cache")
    assert isinstance(why, str) and "computes something else" in why


def test_users_are_told_where_it_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: "no g++ or clang++")
    monkeypatch.setattr("networks.sem.library", native.library)
    config = SEMConfig(4, 16)
    assert told("cpu", None, config) == " (by torch, slower: no g++ or clang++)"
    assert told("cuda", config) == told("cpu", None) == ""
    x, block = torch.randn(6, 5), SEM(5, config)
    assert not fused(block, x)


@built
def test_users_are_told_which_blocks_are_slower() -> None:
    assert told("cpu", None, SEMConfig(2, 64), SEMConfig(16, 4)) == ""
    for config in (SEMConfig(10, 10), SEMConfig(3, 4), SEMConfig(4, 256)):
        assert told("cpu", SEMConfig(2, 64), config).startswith(" (by torch, slower: V is not one of 2, 4, 8, ")
    assert told("cpu", SEMConfig(4, 16, 1.0, True)) == " (by torch, slower: tau is learned)"


@built
def test_one_thread_alone_leaves_large_batches_to_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.ready(), "threaded", False)
    affine, large, small = (torch.ones(64), torch.zeros(64)), torch.randn(2048, 64), torch.randn(256, 64)
    assert native.suits(large, *affine, 4) and told("cpu", SEMConfig(16, 4)) == ""
    torch.set_num_threads(2)
    assert native.suits(small, *affine, 4) and not native.suits(large, *affine, 4)
    assert "without OpenMP" in told("cpu", SEMConfig(16, 4))
