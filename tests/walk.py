"""A new user's walk: a fresh clone, then README's commands, to a policy, its film, its export, and two curves.

    python tests/walk.py FOLDER              # all of it, downloads included, about twenty minutes on two cores
    python tests/walk.py FOLDER --short      # a few frames and the packages of this Python, about a minute: `make test`

FOLDER must be empty or not there; what is committed here is cloned into it. Each command must stand in the README.md of
the clone. The short walk appends flags to some, and no step of it downloads. What does not work is named, with the end
of what it said, and the exit status is 1.
"""

import argparse
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[1]
PROMISE = 30
"""minutes that the whole walk may take"""
LEARNT = 900.0
"""return that both runs must reach, of 1000"""
RETURN = "eval/episodic_return"
BRIEF = "--total-timesteps 1280 --learning-starts 640 --num-updates 1 --eval-envs 2 --eval-every 640 --log-every 640"
SHORTER = {
    "make train": f'ARGS="{BRIEF}"',
    "python agents/fasttd3.py --exp-name plain": BRIEF,
    "python agents/play.py runs/RUN_DIR --video": "--max-steps 50 --video-size 160 120",
    "python agents/export.py runs/RUN_DIR": "--observations 16",
    "python benchmarks/report.py runs --out report": "--reps 100",
}
"""what the short walk appends to commands"""


class Stumble(Exception):
    """A step that does not work, in words meant for who keeps the README."""


class Done(NamedTuple):
    """A step that has worked."""

    name: str
    command: str
    seconds: float


def said_by(readme: Path) -> set[str]:
    """Return the commands in the fenced blocks of a page, without comments, with one blank between words."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    found = set()
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        try:
            found.add(shlex.join(shlex.split(line, comments=True)))
        except ValueError:  # what a program prints
            continue
    return found


class Walk:
    """The clone, the environment that commands run in, and how far the walk has come."""

    def __init__(self, folder: Path, short: bool) -> None:
        self.folder, self.short = folder, short
        self.clone, self.logs = folder / "semrl", folder / "logs"
        self.venv = Path(sys.prefix) if short else self.clone / ".venv"
        foreign = ("PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of whatever has started the walk
        self.env = {name: value for name, value in os.environ.items() if name not in foreign}
        if short:  # the packages are those of here, the code is that of the clone
            self.env["PYTHONPATH"] = str(self.clone)
        self.names: dict[str, str] = {}
        """what RUN_DIR and OTHER_RUN_DIR stand for"""
        self.steps: list[Done] = []
        self.readme: set[str] = set()

    def activate(self) -> None:
        """Do what `source .venv/bin/activate` does."""
        self.env["PATH"] = f"{self.venv / 'bin'}{os.pathsep}{self.env['PATH']}"
        self.env["VIRTUAL_ENV"] = str(self.venv)

    @contextmanager
    def step(self, name: str, command: str = "") -> Iterator[None]:
        """Time a step, and put its name before what goes wrong in it."""
        begin = time.perf_counter()
        try:
            yield
        except (Stumble, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            kind = "" if isinstance(error, Stumble) else f"{type(error).__name__}: "
            raise Stumble(f"{name}: {kind}{error}") from error
        self.steps.append(Done(name, command, time.perf_counter() - begin))
        print(f"{self.steps[-1].seconds:8.1f} s  {name}", flush=True)

    def run(self, name: str, command: str, cwd: Path | None = None) -> str:
        """Run a command as a step; returns what it said."""
        with self.step(name, command):
            return self.call(command, cwd)

    def call(self, command: str, cwd: Path | None = None) -> str:
        """Run a command; returns what it said on both channels.

        Raises:
            Stumble: its exit status is not 0.
        """
        done = subprocess.run(
            shlex.split(command), cwd=cwd or self.clone, env=self.env, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.log(command, done.stdout)
        if done.returncode:
            end = "\n".join(done.stdout.strip().splitlines()[-15:])
            raise Stumble(f"`{command}` ended with exit status {done.returncode}\n{end}")
        return done.stdout

    def log(self, command: str, text: str) -> None:
        """Keep what a command said."""
        self.logs.mkdir(exist_ok=True)
        name = re.sub(r"\W+", "-", Path(command.split()[0]).name + command.partition(" ")[2])[:60]
        (self.logs / f"{len(self.steps):02}-{name}.txt").write_text(f"$ {command}\n{text}")

    def told(self, command: str) -> str:
        """Return a command of README as it is typed: with the names of the runs, and short where that is asked for.

        Raises:
            Stumble: README has no such command.
        """
        if shlex.join(shlex.split(command)) not in self.readme:
            raise Stumble(f"README.md does not say `{command}`")
        typed = re.sub(r"\b(OTHER_)?RUN_DIR\b", lambda found: self.names[found[0]], command)
        return f"{typed} {SHORTER[command]}" if self.short and command in SHORTER else typed

    def read(self, name: str, command: str) -> str:
        """Run a command of README as a step; returns what it said."""
        with self.step(name, command):
            return self.call(self.told(command))

    def folder_of(self, run: str) -> Path:
        """Return the directory of RUN_DIR or OTHER_RUN_DIR."""
        return self.clone / "runs" / self.names[run]


def expect(condition: bool, message: str) -> None:
    """Raise `Stumble` with the message unless the condition holds."""
    if not condition:
        raise Stumble(message)


# ---- the way ---------------------------------------------------------------------------------------------------------


def walk(at: Walk) -> None:
    """Go the whole way.

    Raises:
        Stumble: at the first step that does not work.
    """
    at.run("clone", shlex.join(["git", "clone", "--quiet", str(HERE), str(at.clone)]), at.folder)
    at.readme = said_by(at.clone / "README.md")
    with at.step("set up, train with SEM", "make train"):
        here = f"VENV={shlex.quote(str(at.venv))} -o {shlex.quote(str(at.venv / '.ready'))}" if at.short else ""
        learn(at, "RUN_DIR", f"{at.told('make train')} {here}")
    at.activate()
    baseline = "python agents/fasttd3.py --exp-name plain"
    with at.step("train the baseline", baseline):
        learn(at, "OTHER_RUN_DIR", at.told(baseline))
    at.read("play and film", "python agents/play.py runs/RUN_DIR --video")
    for kind in ("mp4", "gif"):
        films = list((at.folder_of("RUN_DIR") / "videos").glob(f"*.{kind}"))
        expect(bool(films) and films[0].stat().st_size > 1000, f"play: there is no film, no videos/*.{kind}")
    at.read("show", "python agents/show.py runs/RUN_DIR")
    differs = at.read("show what differs", "python agents/show.py runs/RUN_DIR runs/OTHER_RUN_DIR")
    for setting in ("sem", "exp_name"):
        expect(setting in differs, f"show what differs: it does not name {setting}")
    at.read("export", "python agents/export.py runs/RUN_DIR")
    with at.step("run the export on a machine of its own", "python runs/RUN_DIR/export/run_policy.py"):
        act(at)
    at.read("report", "python benchmarks/report.py runs --out report")
    said = (at.clone / "report" / "REPORT.md").read_text(encoding="utf-8")
    expect("fasttd3" in said and "plain" in said, "report: REPORT.md does not name both variants")
    with at.step("TensorBoard, both runs and the film", "tensorboard --logdir runs"):
        look(at, "tensorboard --logdir runs", curves_of_runs)
    with at.step("TensorBoard, the report", "tensorboard --logdir report/tb"):
        look(at, "tensorboard --logdir report/tb", curves_of_report)


def learn(at: Walk, name: str, command: str) -> None:
    """Train; the program itself says where the run is, and its result must be good."""
    said = at.call(command)
    found = re.search(r"^run directory +runs/(\S+)$", said, re.MULTILINE)
    expect(found is not None, "what it prints does not name the run directory")
    assert found is not None
    at.names[name] = found[1]
    state = json.loads((at.folder_of(name) / "status.json").read_text())["state"]
    expect(state == "done", f"the run is {state}, not done")
    _, score = evaluations(at.folder_of(name))[-1]
    expect(at.short or score >= LEARNT, f"its last evaluation is {score:.0f}, below {LEARNT:.0f}")


def evaluations(run: Path) -> list[tuple[int, float]]:
    """Return frames and return of each evaluation of a run."""
    with open(run / "metrics.csv", newline="") as file:
        return [(int(row["step"]), float(row["value"])) for row in csv.DictReader(file) if row["metric"] == RETURN]


def act(at: Walk) -> None:
    """Run the bundle where there is nothing but Python, onnxruntime and numpy."""
    command = at.told("python runs/RUN_DIR/export/run_policy.py")
    robot = at.folder / "robot"
    at.call(shlex.join(["python", "-m", "venv", *(["--without-pip"] if at.short else []), str(robot)]))
    place = next((robot / "lib").glob("python*")) / "site-packages"
    if at.short:
        packages = next((Path(sys.prefix) / "lib").glob("python*")) / "site-packages"
        for package in ("numpy", "numpy.libs", "onnxruntime"):
            if (packages / package).exists():
                (place / package).symlink_to(packages / package)
    else:
        at.call(f"{shlex.quote(str(robot / 'bin' / 'python'))} -m pip install --quiet onnxruntime numpy")
        expect(not (place / "torch").exists(), "onnxruntime has brought torch along")
    bundle, python = at.folder / "bundle", robot / "bin" / "python"
    (at.folder_of("RUN_DIR") / "export").rename(bundle)
    inherited = at.env.pop("PYTHONPATH", None)
    said = at.call(shlex.join([str(python), str(bundle / Path(command.split()[1]).name)]))
    if inherited is not None:
        at.env["PYTHONPATH"] = inherited
    shape = json.loads((bundle / "policy.json").read_text())["action"]["shape"]
    action = [float(number) for number in re.findall(r"-?\d[\d.e+-]*", said)]
    expect([len(action)] == shape and all(-1 <= x <= 1 for x in action), f"its action is {said.strip()}, not {shape}")


# ---- TensorBoard -----------------------------------------------------------------------------------------------------

Ask = Callable[..., Any]


def look(at: Walk, command: str, judge: Callable[[Walk, Ask], None]) -> None:
    """Start a server and ask it over HTTP until it has what is expected, for a minute at most."""
    typed = f"{at.told(command)} --port 0"
    log = at.logs / f"{len(at.steps):02}-tensorboard.txt"
    with open(log, "w") as file:
        server = subprocess.Popen(
            shlex.split(typed), cwd=at.clone, env=at.env, stdout=file, stderr=file, start_new_session=True
        )
    try:
        until = time.monotonic() + 60
        while True:
            ended = server.poll() is not None
            try:
                expect(not ended, f"`{typed}` ended with exit status {server.returncode}\n{log.read_text()}")
                judge(at, asker(log.read_text()))
                return
            except (Stumble, urllib.error.URLError):
                if ended or time.monotonic() > until:
                    raise
            time.sleep(0.5)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def asker(said: str) -> Ask:
    """Return what asks the server for a page of a plugin; `said` is what it has printed."""
    address = re.search(r"http://\S+:\d+/", said)
    expect(address is not None, "the server has not said where it is")
    assert address is not None

    def ask(page: str, **query: str) -> Any:
        url = f"{address[0]}data/plugin/{page}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)

    return ask


def curves_of_runs(at: Walk, ask: Ask) -> None:
    """Both runs have the curve that their metrics.csv has, and one has the film."""
    for name in at.names.values():
        curve = ask("scalars/scalars", run=name, tag=RETURN)
        points = [(step, value) for _, step, value in curve]
        expected = evaluations(at.clone / "runs" / name)
        same = [step for step, _ in points] == [step for step, _ in expected]
        same = same and all(abs(x - y) <= 1e-3 * (1 + abs(y)) for (_, x), (_, y) in zip(points, expected, strict=True))
        expect(same, f"{name}: TensorBoard's {RETURN} is {points}, metrics.csv has {expected}")
    films = ask("images/tags").get(at.names["RUN_DIR"], {})
    expect(bool(films), f"{at.names['RUN_DIR']}: no film in the Images tab")


def curves_of_report(at: Walk, ask: Ask) -> None:
    """Both variants have a mean."""
    tags = ask("scalars/tags")
    for variant in ("fasttd3", "plain"):
        means = [tag for run, found in tags.items() if run == variant for tag in found if tag.endswith("/mean")]
        expect(bool(means), f"no mean of {variant} among {tags}")


# ---- command line ----------------------------------------------------------------------------------------------------


def table(steps: Sequence[Done]) -> str:
    """Return the times as a table in Markdown."""
    rows = ["| step | command | seconds |", "|---|---|---|"]
    rows += [f"| {step.name} | `{step.command}` | {step.seconds:.1f} |" for step in steps]
    total = sum(step.seconds for step in steps)
    return "\n".join([*rows, f"| all | | {total:.1f}, that is {total / 60:.1f} minutes |"])


def main(argv: Sequence[str] | None = None) -> int:
    """Walk; returns the exit status: 0 all worked, 1 a step did not, 2 bad input."""
    parser = argparse.ArgumentParser(description="A new user's walk, by the README alone.")
    parser.add_argument("folder", type=Path, help="of the walk, empty or not there")
    parser.add_argument("--short", action="store_true", help="a few frames, with the packages of this Python")
    args = parser.parse_args(argv)
    folder = args.folder.resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty")
    except OSError as error:
        print(f"error: {error}: give a folder that is empty or not there", file=sys.stderr)
        return 2
    at = Walk(folder, args.short)
    try:
        walk(at)
        minutes = sum(step.seconds for step in at.steps) / 60
        expect(args.short or minutes < PROMISE, f"it took {minutes:.0f} minutes, more than the {PROMISE} promised")
    except Stumble as stumble:
        print(f"error: {stumble}\nwhat the commands said is in {at.logs}", file=sys.stderr)
        return 1
    print(f"\n{table(at.steps)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
