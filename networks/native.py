"""The C++ beside torch: LayerNorm and what follows it on a CPU, as one operation with a derivative.

    python -m networks.native   # build it, and say what has come of it

What follows is the softmax in groups of a SEM block, or an activation. In calls of torch a SEM block's are a dozen, and
several times the arithmetic: rows of 4 to 64 numbers are too short for its kernels. `norm.cpp` computes, and
`operation.cpp` makes an operation of torch of it. Both are built when they are first needed, in ten to thirty seconds,
for the processor and the torch at hand, and kept in `$SEMRL_CACHE`, by default `~/.cache/semrl`. Where there is no
compiler, or it fails, `library` says why, and torch does all of it.
"""

import ctypes
import hashlib
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

SOURCE, OPERATION = Path(__file__).with_name("norm.cpp"), Path(__file__).with_name("operation.cpp")
FLAGS = ("-std=c++20", "-fPIC")
FAST = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math")
THREADED = ("-fopenmp",)
"""for compiling, not for linking: the threads are those of torch's own OpenMP, which is there already"""
WIDTHS = (2, 4, 8, 16, 32, 64, 128)
"""V of the groups that `norm.cpp` has code for"""
RELU, SILU = 0, 1
"""what follows a norm, as is V of the groups of a softmax"""
KNOWN = frozenset((RELU, SILU, *WIDTHS))
LANES = 16
GRAIN = 1 << 15
"""numbers that a thread has to do at least; torch hands out its own loops by the same"""
DTYPES = (torch.float32, torch.bfloat16)
PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""what `norm.cpp` gets, whatever the defaults are"""


class Library:
    """What `norm.cpp` and `operation.cpp` have been built into."""

    def __init__(self, norm: Path, operation: Path, threaded: bool) -> None:
        kernels, name = ctypes.CDLL(str(norm)), norm.stem.replace("-", "_")
        define = ctypes.CDLL(str(operation)).define
        define.argtypes, define.restype = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p], ctypes.c_char_p
        if wrong := define(name.encode(), *(address(kernels[each]) for each in ("norm_forward", "norm_backward"))):
            raise RuntimeError(wrong.decode(errors="replace"))
        self.path, self.threaded = norm, threaded
        self.norm_and = getattr(torch.ops.semrl, name).default


def address(function: Any) -> int | None:
    """Return where a function of a library is."""
    return ctypes.cast(function, ctypes.c_void_p).value


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
    return subprocess.run(command, capture_output=True, check=True, timeout=300).stdout


def load(compiler: Sequence[str], threads: tuple[str, ...]) -> Library:
    """Return the library, built if it is not there, or not whole.

    Raises:
        OSError: it cannot be written or loaded, or the compiler is not there.
        RuntimeError: there is no home, or torch does not take the operation.
        subprocess.SubprocessError: the compiler fails, or does not end.
    """
    of_torch = Path(torch.__file__).parent
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    headers = [f"-isystem{of_torch / each}" for each in ("include", "include/torch/csrc/api/include")]
    links = [f"-L{of_torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    flags = ["-O1", "-fvisibility=hidden", abi, *headers]
    norm = build(SOURCE, compiler, [*FAST, *threads])
    operation = build(OPERATION, compiler, flags, links, [torch.__version__, str(torch.version.git_version)])
    return Library(norm, operation, bool(threads))


def build(
    source: Path, compiler: Sequence[str], flags: Sequence[str], links: Sequence[str] = (), also: Sequence[str] = ()
) -> Path:
    """Return what a source has been built into, if it is not there, or not whole; `also`: what else it depends on."""
    words = [*compiler, *FLAGS, *flags]
    known = call(*words, "-dM", "-E", "-x", "c++", os.devnull)  # version and processor, among all else
    parts = [source.read_bytes(), known, *(word.encode() for word in (*words, *links, *also))]
    path = folder() / f"{source.stem}-{hashlib.sha256(bytes(1).join(parts)).hexdigest()[:16]}.so"
    try:
        ctypes.CDLL(str(path))
    except OSError:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as place:
            print(f"building {source.name} with {' '.join(compiler)}, once", file=sys.stderr, flush=True)
            compiled, linked = Path(place) / "it.o", Path(place) / "it.so"
            call(*words, "-c", str(source), "-o", str(compiled))
            call(*compiler, "-shared", str(compiled), *links, "-o", str(linked))
            linked.replace(path)  # at once: others may be looking for it
    return path


@cache
def library() -> Library | str:
    """Return the library, or why there is none."""
    asked = os.environ.get("CXX")
    compilers = [shlex.split(asked)] if asked else [[name] for name in ("g++", "clang++") if shutil.which(name)]
    why = "no g++ or clang++"
    for compiler, threads in itertools.product(compilers, (THREADED, ())):
        name = " ".join(compiler)
        try:
            found = load(compiler, threads)
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
    leaves = [each.detach().requires_grad_() for each in (x, gain, bias)]
    mine = built.norm_and(*leaves, after, 1e-5, tau)
    got = mine.detach(), *torch.autograd.grad(mine, leaves, grad)
    near = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
    return all((a.float() - b).norm() <= near[a.dtype] * b.norm() for a, b in zip(got, expected, strict=True))


def suits(x: Tensor, gain: Tensor, bias: Tensor, after: int) -> bool:
    """Whether `norm_and` can be asked for it: on a CPU, in shapes that it has, and nobody looks on.

    Compilers, tracers, transforms and modes need to see torch's own operations.
    """
    shape, of_gain = x.shape, gain.shape
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and has_code_for(shape[-1], after)
        and x.dtype in DTYPES
        and gain.dtype == bias.dtype == torch.float32
        and of_gain == bias.shape
        and (of_gain == shape[-1:] or (len(shape) == 3 and of_gain == (shape[0], 1, shape[2])))
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
    return width > 0 and width % max(LANES, after) == 0 and after in KNOWN


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
    return ready().norm_and(x, gain, bias, after, eps, temperature)


def ready() -> Library:
    """Return the library, where `suits` has said that there is one."""
    found = library()
    assert isinstance(found, Library)
    return found


if __name__ == "__main__":
    found = library()
    print(f"torch does it all: {found}" if isinstance(found, str) else found.path)
