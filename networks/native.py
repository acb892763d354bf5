"""The C++ beside torch: LayerNorm and softmax in groups of a SEM block on a CPU, as one call forward and one backward.

In calls of torch they are a dozen, and several times the arithmetic: rows of 4 to 64 numbers are too short for its
kernels. `sem.cpp` is built when it is first needed, which takes a second, for the processor at hand, and kept in
`$SEMRL_CACHE`, by default `~/.cache/semrl`. Where there is no compiler, or it fails, `reason` says so and all is done
by torch.
"""

import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("sem.cpp")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
THREADED = ("-fopenmp",)
"""for compiling, not for linking: the threads are those of torch's own OpenMP, which is there already"""
WIDTHS = (2, 4, 8, 16, 32, 64, 128)
"""V of the groups that `sem.cpp` has code for"""
LANES = 16
GRAIN = 1 << 15
"""numbers that a thread has to do at least; torch hands out its own loops by the same"""
DTYPES = (torch.float32, torch.bfloat16)


class Library:
    """What `sem.cpp` has been built into."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        number, pointer, real = ctypes.c_long, ctypes.c_void_p, ctypes.c_float
        sizes = [ctypes.c_int, ctypes.c_int, number, number, number, number]
        self.forward, self.backward = library.sem_forward, library.sem_backward
        self.forward.argtypes = [*sizes, *[pointer] * 3, real, real, pointer, pointer]
        self.backward.argtypes = [*sizes, pointer, pointer, real, *[pointer] * 6]
        self.forward.restype = self.backward.restype = None


def processor() -> str:
    """Return what tells processors apart that a compiler makes different code for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.machine() + platform.processor()
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def folder() -> Path:
    """Return where what has been built is kept."""
    base = os.environ.get("SEMRL_CACHE")
    return (Path(base).expanduser() if base else Path.home() / ".cache" / "semrl") / "native"


def build(compiler: str, flags: tuple[str, ...]) -> Path:
    """Return the library, built if it is not there.

    Raises:
        OSError: it cannot be written, or the compiler cannot be called.
        subprocess.SubprocessError: the compiler fails, or does not end.
    """
    called = [compiler, *flags]
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), version, *(x.encode() for x in (*called, processor()))]))
    path = folder() / f"sem-{key.hexdigest()[:16]}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            compiled, linked = Path(place) / "sem.o", Path(place) / "sem.so"
            for command in ([*called, "-c", str(SOURCE), "-o", str(compiled)], [compiler, "-shared", str(compiled)]):
                output = [] if "-c" in command else ["-o", str(linked)]
                subprocess.run([*command, *output], capture_output=True, check=True, timeout=300)
            linked.replace(path)  # at once: others may be looking for it
    return path


@cache
def library() -> Library | str:
    """Return the library, or why there is none."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return "no g++ or clang++"
    why = ""
    for flags in ((*FLAGS, *THREADED), FLAGS):
        try:
            found = Library(build(compiler, flags))
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.decode(errors="replace").splitlines() if "error" in line]
            why = f"{compiler} fails: {(lines or [f'exit status {error.returncode}'])[0]}"
        except (OSError, subprocess.SubprocessError, AttributeError) as error:
            why = f"{type(error).__name__}: {error}"
        else:
            return found if agrees(found) else f"what {compiler} has made of sem.cpp computes something else"
    return why[:200]


def agrees(built: Library) -> bool:
    """Whether it computes what torch does, forward and backward: compilers are many, and tests ran with few."""
    rows = torch.linspace(-3, 3, 2 * 3 * 64).sin().view(2, 3, 64)  # no random numbers: a run has a use for them
    gain, bias = 1 + rows[:, :1].cos() / 2, rows[:, 1:2] / 4
    grad = (7 * rows).cos()
    for dtype, vertices in itertools.product(DTYPES, (4, 64)):
        x = rows.to(dtype)
        with torch.enable_grad():
            inputs = [each.detach().clone().requires_grad_() for each in (x.float(), gain, bias)]
            normed = torch.addcmul(inputs[2], torch.layer_norm(inputs[0], [64], eps=1e-5), inputs[1]) / 0.7
            out = torch.softmax(normed.unflatten(-1, (-1, vertices)), -1).flatten(-2)
            expected = out.detach(), *torch.autograd.grad(out, inputs, grad)
        stats = torch.empty(2, 3, 2)
        mine = _forward(built, x, gain, bias, vertices, 0.7, 1e-5, stats)
        got = mine, *_backward(built, x, gain, vertices, 0.7, mine, stats, grad)
        for a, b in zip(got, expected, strict=True):
            if not (a.float() - b).norm() <= (1e-2 if a.dtype == torch.bfloat16 else 1e-5) * b.norm():
                return False
    return True


def suits(x: Tensor, gain: Tensor, vertices: int) -> bool:
    """Whether `norm_and_simplices` can be asked for it: on a CPU, and no compiler or transform looks on."""
    return (
        x.device.type == "cpu"
        and vertices in WIDTHS
        and x.shape[-1] % LANES == 0
        and x.dtype in DTYPES
        and gain.dtype == torch.float32
        and type(x) is Tensor  # and nothing that only passes for one
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and isinstance(library(), Library)
    )


def norm_and_simplices(x: Tensor, gain: Tensor, bias: Tensor, vertices: int, temperature: float, eps: float) -> Tensor:
    """Return the softmax in groups of V of LayerNorm(x) / temperature, float32 in the shape of x.

    Args:
        x: [..., L*V], or [Q, B, L*V] where gain and bias are of Q networks; float32 or bfloat16.
        gain: [L*V] or [Q, 1, L*V] float32, as is `bias`.
        vertices: V.
        temperature: of the softmax.
        eps: what LayerNorm adds to the variance.
    """
    if torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad or bias.requires_grad):
        return _NormAndSimplices.apply(x, gain, bias, vertices, temperature, eps)
    return _forward(ready(), x.contiguous(), gain, bias, vertices, temperature, eps, None)


def ready() -> Library:
    """Return the library, where `suits` has said that there is one."""
    found = library()
    assert isinstance(found, Library)
    return found


def _sizes(x: Tensor, gain: Tensor, vertices: int) -> tuple[int, int, int, int, int, int]:
    threads = max(1, min(torch.get_num_threads(), x.numel() // GRAIN))
    return (
        x.dtype == torch.bfloat16,
        threads,
        gain.numel() // x.shape[-1],
        x.numel() // gain.numel(),
        x.shape[-1],
        vertices,
    )


def _forward(
    built: Library,
    x: Tensor,
    gain: Tensor,
    bias: Tensor,
    vertices: int,
    temperature: float,
    eps: float,
    stats: Tensor | None,
) -> Tensor:
    out = torch.empty(x.shape)
    noted = None if stats is None else stats.data_ptr()
    arrays = x.data_ptr(), gain.data_ptr(), bias.data_ptr()
    built.forward(*_sizes(x, gain, vertices), *arrays, 1 / temperature, eps, out.data_ptr(), noted)
    return out


def _backward(
    built: Library,
    x: Tensor,
    gain: Tensor,
    vertices: int,
    temperature: float,
    out: Tensor,
    stats: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = _sizes(x, gain, vertices)
    threads = sizes[1]
    grad_x = torch.empty_like(x)
    shape = gain.shape if threads == 1 else (threads, *gain.shape)
    grad_gain, grad_bias = torch.empty(shape), torch.empty(shape)
    given = x.data_ptr(), gain.data_ptr(), 1 / temperature, out.data_ptr(), stats.data_ptr(), grad.data_ptr()
    built.backward(*sizes, *given, grad_x.data_ptr(), grad_gain.data_ptr(), grad_bias.data_ptr())
    if threads > 1:
        grad_gain, grad_bias = grad_gain.sum(0), grad_bias.sum(0)
    return grad_x, grad_gain, grad_bias


class _NormAndSimplices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, vertices: int, temperature: float, eps: float
    ) -> Tensor:
        x, gain, bias = x.contiguous(), gain.contiguous(), bias.contiguous()
        stats = torch.empty(*x.shape[:-1], 2)
        out = _forward(ready(), x, gain, bias, vertices, temperature, eps, stats)
        ctx.save_for_backward(x, gain, out, stats)
        ctx.settings = vertices, temperature
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # `once_differentiable` says it too, in twice the time
            raise RuntimeError("a SEM block on a CPU has first derivatives only")
        x, gain, out, stats = ctx.saved_tensors
        vertices, temperature = ctx.settings
        grads = _backward(ready(), x, gain, vertices, temperature, out, stats, grad.contiguous())
        return *grads, None, None, None


def told(device: str) -> str:
    """Return what a user should know of how SEM blocks are computed on a device; nothing where all is as it should."""
    found = library() if device == "cpu" else None
    return f" (by torch, slower: {found})" if isinstance(found, str) else ""
