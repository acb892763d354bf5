"""The SEM paper's toy: a classifier whose labels are drawn anew every few epochs, as a critic's targets move.

    python benchmarks/nonstationary.py --out toy                             # digits, about two minutes
    python benchmarks/nonstationary.py --arms stationary relu sem layernorm narrow single --out toy
    python benchmarks/nonstationary.py --cifar cifar-10-batches-bin --out toy --device cuda

A network that has fitted one labelling has to fit another, and each time has less of what it takes to do so: its units
fall dormant, its features lose rank. The paper's figure 1 shows CIFAR-10, where SEM keeps both. Here the images are the
1,797 digits that scikit-learn ships, or the first 10,000 of CIFAR-10 in its binary version, both as vectors through a
plain MLP, so levels are not those of the paper. A labelling is a random permutation of the labels over the images:
there is nothing to learn but by heart. `stationary` is the plain network with one labelling for good.

All seeds of an arm are copies in one batched network (`networks.layers.BatchedLinear`), each with starts, batches and
labels of its own, so that a seed does not depend on how many there are.

OUT gets `results.csv` (a row per arm, seed, measure and epoch), `curves.png` and `curves.pdf`.
"""

import csv
import gzip
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from agents import config, machine
from agents.checkpoint import RunError, disk
from benchmarks import plots, stats
from benchmarks.study import BASELINE, PALETTE
from networks.bottlenecks import Bottleneck
from networks.diagnostics import describe_copies
from networks.flat import AdamW, Flat
from networks.layers import BatchedLinear
from networks.torso import mlp_torso

KINDS = ("sem", "layernorm", "narrow", "single", "gumbel-st", "vq", "crelu", "l2", "fta")
ARMS = ("stationary", "relu", *KINDS)
PROBE = 1024
PANELS = {
    "loss": "Training loss",
    "accuracy": "Training accuracy",
    "effective_rank": "Effective rank of the features",
    "network_dormant_tau": "Share of dormant units",
}


@dataclass
class Args:
    """Train a classifier on labels that change, with each bottleneck, and draw what becomes of it."""

    arms: tuple[str, ...] = ("stationary", "relu", "sem")
    """what to compare: stationary, relu (the plain network) and any --bottleneck of the agents"""
    seeds: int = 5
    """of each arm, from 0 on"""
    epochs: int = 100
    """passes over the images"""
    shuffle_every: int = 20
    """epochs after which labels are drawn anew"""
    batch_size: int = 256
    """images per update"""
    learning_rate: float = 1e-3
    """of Adam"""
    hidden: tuple[int, ...] = (256, 256, 256)
    """units of the hidden layers; the block takes the place of the last one"""
    groups: int = 16
    """L of the block"""
    vertices: int = 16
    """V of the block"""
    cifar: Path | None = None
    """folder of CIFAR-10's binary version, in place of the digits"""
    out: Path = Path("nonstationary")
    """folder of the results"""
    device: str = "auto"
    """where it runs: auto, cpu, cuda"""


# ---- data ------------------------------------------------------------------------------------------------------------


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: [1797, 64] in 0..16, and labels.

    Raises:
        RunError: scikit-learn is missing.
    """
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise RunError(
            "the digits are scikit-learn's, which is not installed: pip install -e '.[toy]', or give --cifar"
        )
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with disk(f"read {path}"):
        table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",")
    return table[:, :-1], table[:, -1].astype(np.int64)


def cifar(folder: Path, count: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Return the first images of CIFAR-10: [count, 3072] in 0..255, and labels.

    Raises:
        RunError: the folder lacks data_batch_1.bin, or the file is not what it should be.
    """
    path = folder / "data_batch_1.bin"
    with disk(f"read {path}"):
        data = np.frombuffer(path.read_bytes(), np.uint8)
    if len(data) != 10_000 * 3_073 or data[::3_073].max() > 9:
        raise RunError(f"{path} is not a batch of CIFAR-10's binary version (cs.toronto.edu/~kriz/cifar.html)")
    rows = data.reshape(-1, 3_073)[:count]
    return rows[:, 1:].astype(np.float32), rows[:, 0].astype(np.int64)


# ---- training --------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """One network for each of S seeds, side by side: [B, D] or [S, B, D] to logits [S, B, 10].

    Each starts as it would alone.
    """

    def __init__(self, in_features: int, args: Args, arm: str) -> None:
        super().__init__()
        block = Bottleneck(args.groups, args.vertices, kind=arm) if arm in KINDS else None  # type: ignore[arg-type]
        single = []
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            torso, width = mlp_torso(in_features, args.hidden, block, 1)
            single.append(nn.ModuleList([torso, BatchedLinear(width, 10, 1)]))
        self.torso, width = mlp_torso(in_features, args.hidden, block, args.seeds)
        self.head = BatchedLinear(width, 10, args.seeds)
        pieces = [[*one.state_dict().values()] for one in single]
        both = nn.ModuleList([self.torso, self.head])
        both.load_state_dict(dict(zip(both.state_dict(), map(torch.cat, zip(*pieces, strict=True)), strict=True)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.torso(images))


def train(arm: str, images: Tensor, labels: Tensor, args: Args) -> dict[str, np.ndarray]:
    """Return what is measured of an arm after each epoch: [epochs, seeds] by name."""
    device, count, seeds = images.device, len(images), args.seeds
    net = Classifier(images.shape[1], args, arm).to(device)
    flat = Flat(net.parameters())
    optimizer = AdamW(flat, args.learning_rate)
    streams = [torch.Generator().manual_seed(seed) for seed in range(seeds)]

    def permutations() -> Tensor:
        return torch.stack([torch.randperm(count, generator=stream) for stream in streams]).to(device)  # [S, n]

    targets = labels[permutations()]
    found: dict[str, list[Tensor]] = {}
    for epoch in range(args.epochs):
        if arm != "stationary" and epoch and epoch % args.shuffle_every == 0:
            targets = labels[permutations()]
        for rows in permutations().split(args.batch_size, 1):
            logits = net(images[rows])
            loss = F.cross_entropy(logits.flatten(0, 1), targets.gather(1, rows).flatten(), reduction="sum")
            flat.differentiate(loss / rows.shape[1])  # the mean of each seed: they share no parameter
            optimizer.step()
        for name, value in measure(net, images, targets).items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values).cpu().double().numpy() for name, values in found.items()}


@torch.no_grad()
def measure(net: Classifier, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return [S] of each measure: loss and accuracy on all images, and what the networks make of 1,024 of them."""
    net.eval()  # gumbel-st then draws nothing
    logits = net(images)
    seeds, count = targets.shape
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(seeds, count).mean(1)
    out = {"loss": loss, "accuracy": (logits.argmax(-1) == targets).float().mean(1)}
    names = [f"s{seed}" for seed in range(seeds)]
    described = describe_copies(names, net.torso, images[:PROBE])
    net.train()
    for tag in described:
        if tag.startswith("repr/s0_"):
            name = tag.removeprefix("repr/s0_")
            out[name] = torch.stack([described[f"repr/{seed}_{name}"] for seed in names])
    return out


# ---- reporting -------------------------------------------------------------------------------------------------------


def plot(found: dict[str, dict[str, np.ndarray]], args: Args, what: str) -> plots.Plot:
    """Return the figure of all arms."""
    bright = iter(PALETTE)
    colours = {arm: BASELINE if arm in ("stationary", "relu") else next(bright) for arm in found}

    def draw(figure: Figure) -> None:
        for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            for arm, measures in found.items():
                x = np.arange(1, args.epochs + 1)
                middle, low, high = stats.t_interval(measures[name].T)
                axes.plot(x, middle, color=colours[arm], linestyle=":" if arm == "stationary" else "-", linewidth=1.6)
                if args.seeds > 1:
                    axes.fill_between(x, low, high, color=colours[arm], alpha=0.15, linewidth=0)
            for epoch in range(args.shuffle_every, args.epochs, args.shuffle_every):
                axes.axvline(epoch + 0.5, color="#D0D0D0", linewidth=0.8, zorder=0)
            axes.set_title(title)
            axes.set_ylim(bottom=0)
            axes.grid(axis="y")
            axes.set_xlabel("epoch")

    caption = (
        f"{what}. Labels are drawn anew every {args.shuffle_every} epochs (grey lines), but for stationary. Line: mean "
        f"over {args.seeds} seeds; band: 95% Student-t interval. Block: L={args.groups}, V={args.vertices}."
    )
    legend = [(arm, colours[arm], ":" if arm == "stationary" else "-") for arm in found]
    return plots.Plot("curves", "A classifier of labels that change", caption, 5.2, draw, legend)


def table(found: dict[str, dict[str, np.ndarray]]) -> str:
    """Return what each arm ends with: the mean over seeds, and half of its 95% interval."""
    lines = [f"{'arm':<12}" + "".join(f"{name:>24}" for name in PANELS)]
    for arm, measures in found.items():
        cells = [stats.t_interval(measures[name][-1]) for name in PANELS]
        text = [
            f"{cell.value:.3f}" + (f" ± {cell.high - cell.value:.3f}" if cell.high == cell.high else "")
            for cell in cells
        ]
        lines.append(f"{arm:<12}" + "".join(f"{cell:>24}" for cell in text))
    return "\n".join(lines)


def write(found: dict[str, dict[str, np.ndarray]], args: Args) -> None:
    """Write every number as a tidy table."""
    with open(args.out / "results.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", "measure", "epoch", "value"])
        for arm, measures in found.items():
            for name, values in measures.items():
                for epoch, row in enumerate(values, 1):
                    writer.writerows([arm, seed, name, epoch, f"{value:.6g}"] for seed, value in enumerate(row))


def main(argv: Sequence[str] | None = None) -> None:
    """Train all arms, and write and print what has become of them."""
    args = config.parse(Args, argv=argv).args
    config.positive(args, "seeds", "epochs", "shuffle_every", "batch_size", "learning_rate")
    for arm in args.arms:
        config.require(arm in ARMS, f"--arms {arm}: legal are {', '.join(ARMS)}")
    config.require(len(set(args.arms)) == len(args.arms) > 0, "--arms: name each once, and at least one")
    machine.keep_freed_memory()
    begin = time.perf_counter()
    try:
        device = machine.resolve_device(args.device)
        pixels, kinds = digits() if args.cifar is None else cifar(args.cifar)
        images = torch.as_tensor((pixels - pixels.mean()) / pixels.std(), dtype=torch.float32, device=device)
        labels = torch.as_tensor(kinds, device=device)
        with disk(f"write in {args.out}"):
            args.out.mkdir(parents=True, exist_ok=True)
        found = {}
        for arm in args.arms:
            found[arm] = train(arm, images, labels, args)
            print(f"{arm:<12}{time.perf_counter() - begin:6.0f} s", flush=True)
        what = f"{len(images):,} {'digits of scikit-learn' if args.cifar is None else 'images of CIFAR-10'}"
        with disk(f"write in {args.out}"):
            write(found, args)
            plots.save(plot(found, args, what), args.out, "")
    except (ValueError, RunError) as error:
        config.fail(str(error))
    print(f"\n{table(found)}\n\n{args.out}: results.csv, curves.png, curves.pdf")


if __name__ == "__main__":
    config.program(main)
