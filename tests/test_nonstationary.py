"""The toy with labels that change: its data, its training against a plain loop, its files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.checkpoint import RunError
from benchmarks import nonstationary
from benchmarks.nonstationary import Args, Classifier, cifar, digits, train

TINY = {"hidden": (16, 16), "groups": 4, "vertices": 4, "batch_size": 8, "learning_rate": 0.01}


def data(count: int = 30) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(count, 5, generator=g), torch.randint(10, (count,), generator=g)


@pytest.mark.parametrize("arm", ["relu", "sem", "vq", "gumbel-st"])
def test_a_seed_does_not_depend_on_how_many_there_are(arm: str) -> None:
    torch.manual_seed(0)
    alone, three = (Classifier(5, Args(seeds=seeds, **TINY), arm) for seeds in (1, 3))
    for one, many in zip(alone.parameters(), three.parameters(), strict=True):
        assert torch.equal(one[0], many[0]) and (many.std() == 0 or not torch.equal(many[0], many[1]))
    if arm == "gumbel-st":  # draws from one stream
        return
    few = train(arm, *data(), Args(seeds=1, epochs=4, shuffle_every=2, **TINY))
    more = train(arm, *data(), Args(seeds=3, epochs=4, shuffle_every=2, **TINY))
    for name in ("loss", "accuracy", "effective_rank"):
        np.testing.assert_allclose(few[name][:, 0], more[name][:, 0], rtol=1e-4)


def test_training_equals_a_plain_loop() -> None:
    images, labels = data()
    args = Args(seeds=2, epochs=5, shuffle_every=2, **TINY)
    found = train("relu", images, labels, args)
    for seed in range(2):
        start = Classifier(5, args, "relu")
        layers: list[nn.Module] = []
        for layer in [*start.torso, start.head]:
            if hasattr(layer, "weight"):
                plain = nn.Linear(*layer.weight.shape[1:])
                plain.weight.data, plain.bias.data = layer.weight.data[seed].T.clone(), layer.bias.data[seed, 0].clone()
                layers += [plain, nn.ReLU()]
        net = nn.Sequential(*layers[:-1])
        optimizer = torch.optim.Adam(net.parameters(), lr=args.learning_rate)
        stream = torch.Generator().manual_seed(seed)
        targets = labels[torch.randperm(30, generator=stream)]
        for epoch in range(5):
            if epoch in (2, 4):
                targets = labels[torch.randperm(30, generator=stream)]
            for rows in torch.randperm(30, generator=stream).split(8):
                optimizer.zero_grad()
                F.cross_entropy(net(images[rows]), targets[rows]).backward()
                optimizer.step()
            with torch.no_grad():
                logits = net(images)
            np.testing.assert_allclose(found["loss"][epoch, seed], F.cross_entropy(logits, targets), rtol=1e-4)
            np.testing.assert_allclose(found["accuracy"][epoch, seed], (logits.argmax(1) == targets).float().mean())


def test_a_new_labelling_costs_and_the_old_one_does_not() -> None:
    args = Args(seeds=3, epochs=60, shuffle_every=30, **TINY)
    for arm in ("relu", "sem", "stationary"):
        loss = train(arm, *data(), args)["loss"].mean(1)
        assert loss[29] < 1.0
        assert (loss[30] > loss[29] + 0.5) == (arm != "stationary")


def test_files_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = data()
    monkeypatch.setattr(nonstationary, "digits", lambda: (images.numpy(), labels.numpy()))
    words = "--arms stationary relu sem --seeds 2 --epochs 4 --shuffle-every 2 --hidden 16 16 --groups 4 --vertices 4"
    nonstationary.main([*words.split(), "--out", str(tmp_path / "toy")])
    with open(tmp_path / "toy" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    loss = [row for row in rows if row["measure"] == "loss"]
    assert [(row["arm"], row["epoch"], row["seed"]) for row in loss] == [
        (arm, str(epoch), str(seed))
        for arm in ("stationary", "relu", "sem")
        for epoch in (1, 2, 3, 4)
        for seed in (0, 1)
    ]
    by_arm = {arm: [row["value"] for row in loss if row["arm"] == arm] for arm in ("stationary", "relu")}
    assert by_arm["stationary"][:4] == by_arm["relu"][:4] and by_arm["stationary"][4:] != by_arm["relu"][4:]
    assert {"accuracy", "effective_rank", "network_dormant_tau", "trunk_effective_rank"} <= {
        row["measure"] for row in rows
    }
    assert (tmp_path / "toy" / "curves.png").stat().st_size > 10_000
    assert "accuracy" in capsys.readouterr().out


def test_the_digits_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = digits()
    theirs = datasets.load_digits()
    assert (pixels == theirs.data).all() and (labels == theirs.target).all()


def test_cifar_in_its_binary_version(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (10_000, 3_073), dtype=np.uint8)
    rows[:, 0] = rng.integers(0, 10, 10_000)
    (tmp_path / "data_batch_1.bin").write_bytes(rows.tobytes())
    pixels, labels = cifar(tmp_path, 50)
    assert (pixels == rows[:50, 1:]).all() and (labels == rows[:50, 0]).all()
    (tmp_path / "data_batch_1.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(RunError, match="is not a batch of CIFAR-10's binary version"):
        cifar(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--arms relu dropout", "--arms dropout: legal are stationary, relu, sem"),
        ("--arms relu relu", "name each once"),
        ("--epochs 0", "--epochs 0: must be above 0"),
        ("--cifar nowhere", "cannot read nowhere/data_batch_1.bin"),
    ],
)
def test_bad_input(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        nonstationary.main([*words.split(), "--out", str(tmp_path / "toy")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "toy").exists()
