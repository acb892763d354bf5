"""The C++ beside torch: LayerNorm and what follows it on a CPU, as one call forward and one backward.

What follows is the softmax in groups of a SEM block, or an activation. In calls of torch a SEM block's are a dozen, and
several times the arithmetic: rows of 4 to 64 numbers are too short for its kernels. `norm.cpp` is built when it is
first needed, in a second or two, for the processor at hand, and kept in `$SEMRL_CACHE`, by default `~/.cache/semrl`.
Where there is no compiler, or it fails, `library` says why, and torch does all of it.
"""

import ctypes
import hashlib
import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

SOURCE = Path(__file__).with_name("norm.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
THREADED = ("-fopenmp",)
"""for compiling, not for linking: the threads are those of torch's own OpenMP, which is there already"""
WIDTHS = (2, 4, 8, 16, 32, 64, 128)
"""V of the groups that `norm.cpp` has code for"""
RELU, SILU = 0, 1
"""what follows a norm, as is V of the groups of a softmax"""
LANES = 16
GRAIN = 1 << 15
"""numbers that a thread has to do at least; torch hands out its own loops by the same"""
DTYPES = (torch.float32, torch.bfloat16)
PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""what `norm.cpp` gets, whatever the defaults are"""


class Library:
    """What `norm.cpp` has been built into."""

    def __init__(self, path: Path, threaded: bool) -> None:
        library = ctypes.CDLL(str(path))
        number, pointer, real = ctypes.c_long, ctypes.c_void_p, ctypes.c_float
        sizes = [ctypes.c_int, ctypes.c_int, number, number, number, number]
        self.threaded = threaded
        self.forward, self.backward = library.norm_forward, library.norm_backward
        self.forward.argtypes = [*sizes, *[pointer] * 3, real, real, pointer, pointer]
        self.backward.argtypes = [*sizes, *[pointer] * 3, real, *[pointer] * 6]
        self.forward.restype = self.backward.restype = None


def folder() -> Path:
    """Return where what has been built is kept.

    Raises:
        RuntimeError: there is no home.
    """
    base = os.environ.get("SEMRL_CACHE")
    return (Path(base).expanduser() if base else Path.home() / ".cache" / "semrl") / "native"


def call(*command: str) -> bytes:
    """Return what a compiler prints.

    Raises:
        OSError: it is not there.
        subprocess.SubprocessError: it fails, or does not end.
    """
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout


def load(compiler: Sequence[str], flags: tuple[str, ...], threaded: bool) -> Library:
    """Return the library, built if it is not there, or not whole.

    Raises:
        OSError: it cannot be written or loaded, or the compiler is not there.
        RuntimeError: there is no home.
        subprocess.SubprocessError: the compiler fails, or does not end.
    """
    compile_, link = [*compiler, *flags, "-c"], [*compiler, "-shared"]
    known = call(*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull)  # version and processor, among all else
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), known, *(word.encode() for word in compile_)]))
    path = folder() / f"norm-{key.hexdigest()[:16]}.so"
    try:
        return Library(path, threaded)
    except OSError:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            compiled, linked = Path(place) / "norm.o", Path(place) / "norm.so"
            call(*compile_, str(SOURCE), "-o", str(compiled))
            call(*link, str(compiled), "-o", str(linked))
            linked.replace(path)  # at once: others may be looking for it
    return Library(path, threaded)


@cache
def library() -> Library | str:
    """Return the library, or why there is none."""
    asked = os.environ.get("CXX")
    compilers = [shlex.split(asked)] if asked else [[name] for name in ("g++", "clang++") if shutil.which(name)]
    why = "no g++ or clang++"
    for compiler, threads in itertools.product(compilers, (THREADED, ())):
        name = " ".join(compiler)
        try:
            found = load(compiler, (*FLAGS, *threads), bool(threads))
        except subprocess.CalledProcessError as error:
            said = [line for line in error.stderr.decode(errors="replace").splitlines() if line.strip()]
            telling = [line for line in said if "error:" in line or "No space" in line] or said[-1:]
            why = f"{name} fails: {(telling or [f'exit status {error.returncode}'])[0]}"
        except subprocess.TimeoutExpired:
            return f"{name} does not end"
        except (OSError, RuntimeError) as error:
            why = f"{name}: {type(error).__name__}: {error}"
        else:
            return found if agrees(found) else f"what {name} has made of norm.cpp computes something else"
    return why[:200]


def agrees(built: Library) -> bool:
    """Whether it computes what torch does, forward and backward: compilers are many, and tests ran with few."""
    with torch.inference_mode(False), torch.enable_grad():
        return all(computes_the_same(built, dtype, after) for dtype in DTYPES for after in (RELU, SILU, *WIDTHS[:-1]))


def computes_the_same(built: Library, dtype: torch.dtype, after: int) -> bool:
    """Whether it computes what torch does with one shape; draws no random numbers, for which a run has a use."""
    rows = torch.linspace(-3, 3, 2 * 3 * 64, **PLAIN).sin().view(2, 3, 64)
    gain, bias = 1 + rows[:, :1].cos() / 2, rows[:, 1:2] / 4
    x, tau = rows.to(dtype), 0.7
    inputs = [each.detach().clone().requires_grad_() for each in (x.float(), gain, bias)]
    normed = torch.addcmul(inputs[2], torch.layer_norm(inputs[0], [64], eps=1e-5), inputs[1])
    if after in WIDTHS:
        out = torch.softmax((normed / tau).unflatten(-1, (-1, after)), -1).flatten(-2)
    else:
        out = torch.relu(normed) if after == RELU else normed * torch.sigmoid(normed)
    grad = (7 * rows).cos().to(out_dtype(x, after))
    expected = out.detach(), *torch.autograd.grad(out, inputs, grad.float())
    stats = torch.empty(2, 3, 2, **PLAIN)
    mine = _forward(built, x, gain, bias, after, tau, 1e-5, stats)
    got = mine, *_backward(built, x, gain, bias, after, tau, mine, stats, grad)
    near = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
    return all((a.float() - b).norm() <= near[a.dtype] * b.norm() for a, b in zip(got, expected, strict=True))


def suits(x: Tensor, gain: Tensor, bias: Tensor, after: int) -> bool:
    """Whether `norm_and` can be asked for it: on a CPU, in shapes that it has, and nobody looks on.

    Compilers, tracers, transforms and modes need to see torch's own operations.
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and has_code_for(x.shape[-1], after)
        and x.dtype in DTYPES
        and gain.dtype == bias.dtype == torch.float32
        and gain.shape == bias.shape
        and (gain.shape == x.shape[-1:] or (x.dim() == 3 and gain.shape == (x.shape[0], 1, x.shape[2])))
        and type(x) is Tensor  # and nothing that only passes for one
        and not x.is_neg()
        and torch._C._len_torch_function_stack() == 0
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
        and isinstance(found := library(), Library)
        and (found.threaded or torch.get_num_threads() == 1 or x.numel() < 2 * GRAIN)
    )


def has_code_for(width: int, after: int) -> bool:
    """Whether `norm.cpp` has code for rows of a width, and what follows."""
    return width > 0 and width % max(LANES, after) == 0 and after in (RELU, SILU, *WIDTHS)


def out_dtype(x: Tensor, after: int) -> torch.dtype:
    """Return the precision of what comes out: points on simplices are float32, activations are as what comes in."""
    return torch.float32 if after in WIDTHS else x.dtype


def norm_and(after: int, x: Tensor, gain: Tensor, bias: Tensor, eps: float, temperature: float = 1.0) -> Tensor:
    """Return an activation of LayerNorm(x), or the softmax in groups of V of LayerNorm(x) / temperature.

    In the shape of x; simplices come out in float32, activations in the precision of x.

    Args:
        after: `RELU`, `SILU`, or V.
        x: [..., D], or [Q, B, D] where gain and bias are of Q networks; float32 or bfloat16.
        gain: [D] or [Q, 1, D] float32, as is `bias`.
        eps: what LayerNorm adds to the variance.
        temperature: of the softmax.
    """
    if torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad or bias.requires_grad):
        return _NormAnd.apply(after, x, gain, bias, eps, temperature)
    return _forward(ready(), x.contiguous(), gain.contiguous(), bias.contiguous(), after, temperature, eps, None)


def ready() -> Library:
    """Return the library, where `suits` has said that there is one."""
    found = library()
    assert isinstance(found, Library)
    return found


def _sizes(x: Tensor, gain: Tensor, after: int) -> tuple[int, int, int, int, int, int]:
    threads = max(1, min(torch.get_num_threads(), x.numel() // GRAIN))
    return (
        x.dtype == torch.bfloat16,
        threads,
        gain.numel() // x.shape[-1],
        x.numel() // gain.numel(),
        x.shape[-1],
        after,
    )


def _forward(
    built: Library,
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    after: int,
    temperature: float,
    eps: float,
    stats: Tensor | None,
) -> Tensor:
    out = torch.empty(x.shape, dtype=out_dtype(x, after), device="cpu")
    noted = None if stats is None else stats.data_ptr()
    arrays = x.data_ptr(), gain.data_ptr(), bias.data_ptr()
    built.forward(*_sizes(x, gain, after), *arrays, 1 / temperature, eps, out.data_ptr(), noted)
    return out


def _backward(
    built: Library,
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    after: int,
    temperature: float,
    out: Tensor | None,
    stats: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = _sizes(x, gain, after)
    threads = sizes[1]
    grad_x = torch.empty_like(x)
    shape = gain.shape if threads == 1 else (threads, *gain.shape)
    grad_gain, grad_bias = torch.empty(shape, **PLAIN), torch.empty(shape, **PLAIN)
    given = x.data_ptr(), gain.data_ptr(), bias.data_ptr(), 1 / temperature, out if out is None else out.data_ptr()
    into = grad_x.data_ptr(), grad_gain.data_ptr(), grad_bias.data_ptr()
    built.backward(*sizes, *given, stats.data_ptr(), grad.data_ptr(), *into)
    if threads > 1:
        grad_gain, grad_bias = grad_gain.sum(0), grad_bias.sum(0)
    return grad_x, grad_gain, grad_bias


class _NormAnd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, after: int, x: Tensor, gain: Tensor, bias: Tensor, eps: float, temperature: float) -> Tensor:
        x, gain, bias = x.contiguous(), gain.contiguous(), bias.contiguous()
        stats = torch.empty(*x.shape[:-1], 2, **PLAIN)
        out = _forward(ready(), x, gain, bias, after, temperature, eps, stats)
        ctx.save_for_backward(x, gain, bias, out if after in WIDTHS else None, stats)
        ctx.settings = after, temperature, eps
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, out, stats = ctx.saved_tensors
        after, temperature, eps = ctx.settings
        grad = grad.contiguous().resolve_neg()
        if torch.is_grad_enabled() or not has_memory(grad):
            grads = by_torch(x, gain, bias, after, temperature, eps, out, grad)
        else:
            grads = _backward(ready(), x, gain, bias, after, temperature, out, stats, grad)
        return None, *grads, None, None


def has_memory(x: Tensor) -> bool:
    """Whether numbers lie where a pointer says: not those of many derivatives at once, nor zeros that torch saves."""
    try:
        return x.data_ptr() != 0 or x.numel() == 0
    except RuntimeError:
        return False


def by_torch(
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    after: int,
    temperature: float,
    eps: float,
    out: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives in torch's operations, for those who differentiate them again, or many at once."""
    wide, grad = x.float(), grad.float()
    unit = torch.layer_norm(wide, x.shape[-1:], eps=eps)
    rstd = (wide.var(-1, correction=0, keepdim=True) + eps).rsqrt()
    if out is not None:
        codes, by_code = (each.reshape(*x.shape[:-1], x.shape[-1] // after, after) for each in (out, grad))
        by_normed = (codes * (by_code - (codes * by_code).sum(-1, keepdim=True))).reshape(x.shape) / temperature
    else:
        normed = torch.addcmul(bias, unit, gain)
        share = torch.sigmoid(normed)
        by_normed = grad * ((normed > 0) if after == RELU else share * (1 + normed * (1 - share)))
    by_unit = by_normed * gain
    along = (by_unit * unit).mean(-1, keepdim=True)
    by_x = rstd * (by_unit - by_unit.mean(-1, keepdim=True) - unit * along)
    of_gain, of_bias = ((by_normed * each).sum_to_size(gain.shape) for each in (unit, torch.ones_like(unit)))
    return by_x.to(x.dtype), of_gain, of_bias
