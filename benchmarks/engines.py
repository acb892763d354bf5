"""Where the runs of a sweep run: on this machine, on a Ray cluster, or in Slurm's queue.

An engine only decides where and when. What a run is, is the same on all of them: a `Job` is started by `launch` as
`python agents/x.py --run-dir ...`, holds the lock `.child` of its directory from its first moment to its last, writes
result.json itself when it has finished, saves and exits with 75 when it gets SIGTERM, and goes on from its last
checkpoint when it is started again. `Drive` hands jobs to an engine until all of them have ended for good.
"""

import fcntl
import hashlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

from benchmarks import status
from benchmarks.status import alive, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.2
MEMORY_S = 10.0
"""seconds between two looks at the memory of a GPU that was full"""
SAVED = os.EX_TEMPFAIL
"""exit status of a run that was stopped by a signal: saved, to be started again"""
NOT_STARTED = "not started"
"""why a run has ended that a stop came before"""
TOKEN = ".ray/auth_token"
"""where in the home directory Ray keeps the token of its clusters"""


# ---- one run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One run of the grid: what to start, and where it writes."""

    key: str
    """path below DIR/runs: WalkerWalk-v1/fasttd3__sem-on/seed3"""
    dir: Path
    script: str
    flags: tuple[str, ...]
    settings: Mapping[str, str]
    """the flags in a form that can be compared"""
    code: str
    """`code_version` that the sweep is about"""
    git: str = ""
    """the same for people"""
    any_code: bool = False
    """start it even if the code has changed meanwhile"""
    cwd: str = "."
    python: str = sys.executable
    ranks: int = 1
    """processes that train it together, each with a GPU of its own"""

    def argv(self, threads: int | None) -> list[str]:
        """The command line. A run that goes on keeps its number of threads, which belongs to its settings."""
        threads = read_json(self.dir / "config.json").get("threads", threads)
        count = ["--threads", str(threads)] if threads else []  # 0 is the run's own choice, with the flag or without
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        return [self.python, *(torchrun if self.ranks > 1 else []), self.script, *count, *self.flags]


class Ended(NamedTuple):
    """A run has stopped running."""

    job: Job
    code: int | None
    """exit status, below 0 for a signal; None if nobody saw it"""
    why: str = ""
    refusal: Exception | None = None
    """what `launch` raised instead of starting it"""


class Refused(Exception):
    """A job was not started: another process works on it, or it is done."""


class CodeChanged(Exception):
    """A job was not started: the code is not that of the sweep. One line, meant for users."""


def code_version(script: str) -> str:
    """Hash of the source that a run depends on: its agent, and what agents share.

    It knows uncommitted changes, and is blind to commits that touch no such file.
    """
    files = [path for package in ("agents", "envs", "networks") for path in (ROOT / package).rglob("*.py")]
    source = {path: path.read_bytes() for path in sorted({*files, Path(script).resolve()})}
    digest = hashlib.sha256()
    for path, content in source.items():
        other_program = path.parent == ROOT / "agents" and b'__name__ == "__main__"' in content
        if not other_program or path == Path(script).resolve():
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def check_code(job: Job) -> None:
    """Refuse a job whose code has changed.

    Raises:
        CodeChanged: so it is.
    """
    if not job.any_code and code_version(job.script) != job.code:
        raise CodeChanged("the code has changed since the sweep began; nothing more is started")


def launch(
    job: Job, where: str, threads: int | None, env: Mapping[str, str], detached: bool
) -> subprocess.Popen[bytes]:
    """Start a run and return its process. It is locked from before it exists until it is gone.

    Args:
        job: what to start.
        where: for people: "GPU 0".
        threads: of the learner; None for its own choice.
        env: all of the environment.
        detached: in a session of its own, so that it outlives this process and the terminal.

    Raises:
        Refused: another process works on it, or it is done.
        CodeChanged: the code is not that of the sweep.
        OSError: the disk refuses.
    """
    check_code(job)
    job.dir.mkdir(parents=True, exist_ok=True)
    with open(job.dir / ".child", "a") as lock:
        if not _take(lock) or status.held(job.dir / ".lock"):
            raise Refused("another process works on it")
        if status.done(job.dir):
            raise Refused("done")
        _repair(job.dir)
        argv = job.argv(threads)
        record = {
            "key": job.key,
            "argv": argv,
            "settings": dict(job.settings),
            "source": code_version(job.script),
            "git": job.git,
            "host": socket.gethostname(),
            "where": where,
            "pid": None,
            "started": time.time(),
            "starts": read_json(job.dir / "launch.json").get("starts", 0) + 1,
        }
        write_json(job.dir / "launch.json", record)  # before there is a process: nothing runs unrecorded
        with open(job.dir / "log.txt", "ab") as log:
            log.write(f"\n$ {' '.join(argv)}\n".encode())
            log.flush()
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=job.cwd,
                env=dict(env),
                pass_fds=[lock.fileno()],  # the child inherits the lock with the file
                start_new_session=detached,
            )
        note(job, pid=child.pid)
        return child


def note(job: Job, **more: Any) -> None:
    """Add to what launch.json says. A disk that refuses is no reason to stop."""
    with suppress(OSError):
        write_json(job.dir / "launch.json", {**read_json(job.dir / "launch.json"), **more})


def _take(lock: IO[str]) -> bool:
    """Lock a file, patiently: who only looks holds it for a moment, too."""
    for attempt in range(10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02 * (attempt < 9))
            continue
        except OSError:  # a file system without locks: `alive` goes by heartbeats there
            return not alive(Path(lock.name).parent)
        return True
    return False


def _repair(run_dir: Path) -> None:
    """Put a status.json that cannot be read aside: an agent would refuse the run, which can go on without it."""
    path = run_dir / "status.json"
    if not read_json(path) and (path.exists() or (run_dir / "config.json").exists()):
        if path.exists():
            os.replace(path, run_dir / "status.json.damaged")
        write_json(path, {"state": "interrupted", "step": 0, "why": "status.json was lost"})


def judge(ended: Ended) -> tuple[str, str]:
    """Return what is to become of a run that has ended, and why: "done", "again" or "failed".

    Only a result that the training process has written makes it done: wrappers lose exit codes. What was killed or has
    saved itself goes on. What failed by itself would fail again.
    """
    job, code, why, refusal = ended
    if isinstance(refusal, OSError):
        return "failed", _cannot_start(refusal, job)
    said = read_json(job.dir / "status.json")
    if said.get("time", 0.0) < read_json(job.dir / "launch.json").get("started", 0.0):
        said = {}  # of the life before
    if status.done(job.dir):
        return "done", ""
    if code == SAVED:
        return "again", f"stopped by {said.get('why') or 'a signal'}, saved"
    if code is not None and code < 0:
        return "again", f"killed by {_signal_name(-code)}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    if code is None and said.get("state") != "failed":
        saved = said.get("state") == "interrupted"
        return "again", why or (f"stopped by {said.get('why') or 'a signal'}, saved" if saved else "ended unseen")
    if job.ranks > 1 and code:  # torchrun's own status is 1 whatever has happened
        if said.get("state") == "interrupted":
            return "again", f"stopped by {said.get('why') or 'a signal'}, saved"
        if said.get("state") == "running" or str(said.get("why", "")).startswith("RankError"):
            return "again", f"one of its {job.ranks} processes has ended"
        if not said and (number := _killed_torchrun(status.last_life(job.dir / "log.txt"))):  # before it wrote any
            return "again", f"killed by {_signal_name(number)} while it started"
    if code == 0 and said.get("state") in ("running", "interrupted"):  # it never said that it was finished
        return "again", "exit status 0, but not finished"
    what = (
        why or "failed" if code is None else "exit status 0 without result.json" if code == 0 else f"exit status {code}"
    )
    reason = said.get("why") if said.get("state") == "failed" else "".join(status.last_lines(job.dir / "log.txt", 1))
    return "failed", f"{what}: {reason or 'nothing was said'}"


def _cannot_start(refused: OSError, job: Job) -> str:
    return f"cannot start it: {refused.strerror or refused} ({refused.filename or job.dir})"


def _killed_torchrun(log: str) -> int:
    """Number of the signal that ended torchrun, or the first of its processes that failed; 0 where none did."""
    reasons = r"SignalException: Process \d+ got signal: (\d+)|Root Cause.*?exitcode\s*: (?:-(\d+))?"
    found = re.search(reasons, log, re.DOTALL)
    return int(found[1] or found[2] or 0) if found else 0


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def environment(gpu: str, threads: int, cache: Path) -> dict[str, str]:
    """Return the environment variables of a run: its GPU, its threads, and what runs share.

    A cache of compiled kernels that all runs use makes only the first compile: seconds instead of half a minute.
    """
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # GPU 1 is the same for CUDA as for nvidia-smi
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else the first simulator in JAX takes 75% of the GPU
        **os.environ,
        **dict.fromkeys(names, count),
        "CUDA_VISIBLE_DEVICES": gpu,
        **({"MUJOCO_EGL_DEVICE_ID": gpu} if gpu.isdigit() else {}),
        "PYTHONUNBUFFERED": "1",
    }


# ---- the loop --------------------------------------------------------------------------------------------------------


@dataclass
class Stop:
    """Signals that asked to stop; a program that wants them installs `heard`."""

    name: str = ""
    sigints: int = 0

    def heard(self, number: int, _: Any) -> None:
        """Remember a signal. Only a second SIGINT is impatient; batch systems repeat theirs."""
        self.name = self.name or signal.Signals(number).name
        self.sigints += number == signal.SIGINT


class Engine:
    """Runs jobs somewhere. This base knows the runs that others have started; the rest is up to the subclasses."""

    waits_on_stop = True
    """whether its runs end with the sweep"""

    def __init__(self) -> None:
        self.adopted: dict[str, Job] = {}
        """runs that were alive already, left by a sweep that was killed for instance"""

    @property
    def busy(self) -> bool:
        """Whether anything that was started has not ended."""
        return bool(self.adopted)

    def start(self, job: Job) -> bool:
        """Start a job, or take over one that is alive; False while there is no room for it.

        Raises:
            Refused, CodeChanged, OSError: as `launch` does.
        """
        if alive(job.dir):
            self.adopted[job.key] = job
            return True
        return self._start(job)

    def ended(self) -> list[Ended]:
        """What has ended since the last call."""
        gone = [job for job in self.adopted.values() if not alive(job.dir)]
        for job in gone:
            del self.adopted[job.key]
        return [Ended(job, None) for job in gone]

    def stop(self, number: int) -> None:
        """Send a signal to all that runs, also to what a sweep before has left here. What people started goes on."""
        for key, job in list(self.adopted.items()):
            launch = read_json(job.dir / "launch.json")
            if launch.get("host") == socket.gethostname() and status.held(job.dir / ".child") and launch.get("pid"):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(launch["pid"], number)
            else:
                del self.adopted[key]

    def close(self) -> None:
        """Release what the engine holds."""

    def farewell(self) -> str:
        """What to tell people whose runs go on without the sweep."""
        return ""

    def _start(self, job: Job) -> bool:
        raise NotImplementedError


class Verdict(NamedTuple):
    """What has become of a run in a sweep."""

    state: str
    """done, failed, or unfinished: a stop or a change of the code came before its end"""
    why: str = ""


class Drive:
    """Runs jobs in their order until each is done or has failed, or a signal asks to stop."""

    def __init__(
        self,
        jobs: Sequence[Job],
        engine: Engine,
        retries: int = 2,
        stop: Stop | None = None,
        say: Callable[[str], None] = print,
        refresh: Callable[[], None] = lambda: None,
        delay: float = 0.0,
        follow: Callable[[Job, Verdict], Sequence[Job]] = lambda job, verdict: (),
    ) -> None:
        """Nothing starts yet.

        Args:
            jobs: the first ones start first.
            engine: where.
            retries: how often a run that was killed or has saved itself is started again.
            stop: once it has a name, what runs is told to save and nothing more is started.
            say: takes lines about what happens.
            refresh: called several times a second.
            delay: seconds before a run is started again.
            follow: given a run that is done or has failed for good, returns runs that come after those that wait.
        """
        self.engine = engine
        self.retries = retries
        self.signals = stop or Stop()
        self.say = say
        self.refresh = refresh
        self.delay = delay
        self.follow = follow
        self.waiting = sorted(jobs, key=lambda job: not alive(job.dir))  # those that run hold their slots already
        self.verdicts = {job.key: Verdict("unfinished") for job in jobs}
        self.restarts: Counter[str] = Counter()
        self.not_before: dict[str, float] = {}
        self.closed = False
        """nothing more is started, since the code has changed"""
        self._signalled = 0

    def run(self) -> dict[str, Verdict]:
        """Return key -> what has become of it, when nothing runs any more."""
        while self.engine.busy or (self.waiting and not self.signals.name and not self.closed):
            for ended in self.engine.ended():
                self._settle(ended)
            if self.signals.name:
                if not self.engine.waits_on_stop:
                    break
                self._stop()
            elif not self.closed:
                self._start()
            self.refresh()
            if self.engine.busy or (self.waiting and not self.closed):
                time.sleep(POLL_S)
        return self.verdicts

    def _start(self) -> None:
        """Start what there is room for."""
        for job in list(self.waiting):
            if time.monotonic() < self.not_before.get(job.key, 0.0):
                continue
            refusal = None
            try:
                if not self.engine.start(job):
                    return
            except (Refused, CodeChanged, OSError) as error:
                refusal = error
            self.waiting.remove(job)
            if refusal:
                self._settle(Ended(job, None, refusal=refusal))
            if self.closed:
                return

    def _settle(self, ended: Ended) -> None:
        """Decide what is to become of a run that has ended."""
        job = ended.job
        if _stays_alive(job.dir):  # another process was quicker
            self.waiting.insert(0, job)
            return
        if ended.why == NOT_STARTED:
            return
        if isinstance(ended.refusal, CodeChanged):
            if not self.closed:
                self.say(str(ended.refusal))
            self.closed = True
            return
        verdict, why = judge(ended)
        if verdict != "again":
            self._conclude(job, Verdict(verdict, why), ended.code)
        elif self.signals.name:
            note(job, ended=time.time(), exit=ended.code, verdict=verdict, why=why)
            self.verdicts[job.key] = Verdict("unfinished", why)
            self.say(f"stopped  {job.key}  {why}")
        elif self.restarts[job.key] >= self.retries:
            self._conclude(job, Verdict("failed", f"{why}; that was start number {self.retries + 1}"), ended.code)
        else:
            note(job, ended=time.time(), exit=ended.code, verdict=verdict, why=why)
            self.restarts[job.key] += 1
            self.not_before[job.key] = time.monotonic() + self.delay
            self.waiting.insert(0, job)
            self.say(f"again    {job.key}  {why}; start {self.restarts[job.key] + 1} of at most {self.retries + 1}")

    def _conclude(self, job: Job, verdict: Verdict, code: int | None) -> None:
        self.verdicts[job.key] = verdict
        note(job, ended=time.time(), exit=code, verdict=verdict.state, why=verdict.why)
        seen = status.look(job.key, job.dir)
        self.say(
            f"{verdict.state:<8} {job.key}  {verdict.why or f'{seen.step:,} frames in {status.clock(seen.wall_s)}'}"
        )
        for new in self.follow(job, verdict):
            self.verdicts[new.key] = Verdict("unfinished")
            self.waiting.append(new)

    def _stop(self) -> None:
        """Pass a signal on, once, and a second SIGINT as SIGKILL."""
        impatient = self.signals.sigints > 1
        if self._signalled == 0:
            self.say(f"{self.signals.name}: the runs save and stop; Ctrl-C twice kills them")
            self.engine.stop(signal.SIGTERM)
        if impatient and self._signalled < 2:
            self.say("killing the runs; their last checkpoints stay")
            self.engine.stop(signal.SIGKILL)
        self._signalled = 1 + impatient


def _stays_alive(run_dir: Path) -> bool:
    """Whether a process works on a run, and is not just about to vanish."""
    for _ in range(20):
        if not alive(run_dir):
            return False
        time.sleep(0.05)
    return True


# ---- this machine ----------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A run of this machine, and the slot that it takes."""

    job: Job
    process: subprocess.Popen[bytes]
    slot: str


class Local(Engine):
    """Subprocesses on this machine, one in each slot. A slot is the name of a GPU, or empty for the CPU."""

    def __init__(
        self, slots: Sequence[str], threads: int | None, cache: Path, say: Callable[[str], None] = print
    ) -> None:
        super().__init__()
        self.slots = list(slots)
        self.threads = threads
        self.cache = cache
        self.children: dict[str, Child] = {}
        self._say = say
        self._said: set[str] = set()
        self._next_look: dict[str, float] = {}

    @property
    def busy(self) -> bool:
        """Whether anything that was started has not ended."""
        return bool(self.children or self.adopted)

    def _start(self, job: Job) -> bool:
        slot = self._room()
        if slot is None:
            return False
        env = environment(slot, self.threads or cores(), self.cache)
        process = launch(job, f"GPU {slot}" if slot else "", self.threads, env, detached=True)
        self.children[job.key] = Child(job, process, slot)
        return True

    def ended(self) -> list[Ended]:
        """What has ended since the last call."""
        gone = super().ended()
        for key, child in list(self.children.items()):
            with suppress(ProcessLookupError, PermissionError, ChildProcessError):  # the last: SIGCHLD is ignored here
                if os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    continue
                # What the child has left behind keeps its GPU and lock. The number is its own until wait().
                os.killpg(child.process.pid, signal.SIGKILL)
            gone.append(Ended(child.job, child.process.wait()))
            del self.children[key]
        return gone

    def stop(self, number: int) -> None:
        """Send a signal to all runs of this machine."""
        super().stop(number)
        for child in self.children.values():
            os.kill(child.process.pid, number)  # its number is its own until wait()

    def _room(self) -> str | None:
        """A slot that is free, or None."""
        free = list(self.slots)
        taken = [child.slot for child in self.children.values()]
        for job in self.adopted.values():
            launch = read_json(job.dir / "launch.json")
            if launch.get("host") == socket.gethostname():
                taken.append(str(launch.get("where", "")).removeprefix("GPU "))
        for slot in taken:
            if slot in free:
                free.remove(slot)
            elif free:  # a run from a time with other slots takes its share all the same
                free.pop()
        beside = Counter(taken)
        return next((slot for slot in sorted(free, key=lambda s: beside[s]) if self._fits(slot, beside[slot])), None)

    def _fits(self, gpu: str, beside: int) -> bool:
        """Whether a GPU has memory for one more run like those that are on it. The first of them must show its need."""
        if not gpu or not beside:
            return True
        jobs = [child.job for child in self.children.values() if child.slot == gpu]
        if not all(read_json(job.dir / "status.json").get("sps") for job in jobs):
            return False  # it has not begun to learn, and takes less than it will
        if time.monotonic() < self._next_look.get(gpu, 0.0):
            return False
        memory = gpu_memory().get(gpu)
        if memory is None:
            return True
        used, total = memory
        if used / beside + used <= 0.9 * total:
            return True
        self._next_look[gpu] = time.monotonic() + MEMORY_S
        if gpu not in self._said:
            self._said.add(gpu)
            self._say(f"GPU {gpu}: {beside} of its runs take {used:,.0f} of {total:,.0f} MiB, one more does not fit")
        return False


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Names of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [row[0] for row in _nvidia_smi("index")]


def groups(names: Sequence[str], ranks: int) -> list[str]:
    """Return GPUs in groups for runs of so many processes each, "0,1" and "2,3" for two; what is left over is idle."""
    return [",".join(names[i : i + ranks]) for i in range(0, len(names) - ranks + 1, ranks)]


def missing_gpus(names: Sequence[str]) -> list[str]:
    """Return which of these GPUs this machine lacks; none of them where nobody can tell."""
    rows = _nvidia_smi("index,uuid")
    known = [x for x in names if x.startswith("MIG-") or any(x == row[0] or row[1].startswith(x) for row in rows)]
    return [x for x in names if rows and x not in known]


def gpu_memory() -> dict[str, tuple[float, float]]:
    """MiB of each GPU that are used, and that there are; nothing where that is not known."""
    rows = _nvidia_smi("index,uuid,memory.used,memory.total")
    return {name: (float(row[2]), float(row[3])) for row in rows for name in row[:2]}


def _nvidia_smi(columns: str) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-gpu={columns}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def extra(package: str, name: str, user: str = "") -> ModuleType:
    """Return an optional package, which the extra `name` installs for `user`, by default the engine of that name.

    Raises:
        ValueError: it is not installed; says how.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        needs = f"{user or f'--engine {name}'} needs {package}"
        raise ValueError(f"{needs}: pip install 'semrl[{name}]'  ({error})") from error


# ---- Ray -------------------------------------------------------------------------------------------------------------


class Ray(Engine):
    """Tasks on the machines of a Ray cluster, or of one that it starts here. All of them must see the same files.

    A task holds a share of a GPU for as long as its run lives. Ray restarts nothing: `Drive` does.
    """

    def __init__(self, address: str, share: float, threads: int, cache: Path, stop_file: Path, ranks: int = 1) -> None:
        super().__init__()
        # Read when Ray starts. When a worker dies, so must the run that it has started: it would keep the GPU for
        # ever. Ray has another switch for that, the subreaper, under which every exit status is 0.
        os.environ.setdefault("RAY_process_group_cleanup_enabled", "true")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # else `uv run` copies the folder, runs and all
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # it kills without a word, and without end
        self.ray: Any = extra("ray", "ray")
        if not self.ray.is_initialized():
            if host := re.fullmatch(r"\[?([\w.:-]+)\]?:(\d{1,5})", address):  # Ray would try for minutes
                try:
                    socket.create_connection((host[1], int(host[2])), timeout=20).close()
                except (OSError, OverflowError) as error:
                    raise ValueError(f"no Ray cluster answers at {address}: {error}") from error
            options = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
            try:
                self.ray.init(address=address or None, **options)
            except (ConnectionError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
                why = " ".join(str(error).split()) + (_of_tokens() if address else "")
                raise ValueError(f"no Ray cluster answers{f' at {address}' if address else ''}: {why}") from error
        self.on_gpu = share > 0
        if self.on_gpu and not self.ray.cluster_resources().get("GPU"):
            raise ValueError("the Ray cluster has no GPU: --gpus none")
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(has.get("CPU", 0) >= threads * ranks and has.get("GPU", 0) >= share for has in machines):
            asked = f"{threads * ranks} cores and {share:g} GPUs"  # Ray would wait for them, without a word or an end
            raise ValueError(
                f"no machine of the Ray cluster has the {asked} that a run asks for: lower --ranks, --threads"
            )
        self.options = {"num_cpus": threads * ranks, "num_gpus": share, "max_retries": 0}
        self.arguments = (threads, str(cache), str(stop_file))
        self.stop_file = stop_file
        stop_file.write_text("00")  # room for the number of a signal, also when the disk is full
        self.refs: dict[Any, Job] = {}

    @property
    def busy(self) -> bool:
        """Whether anything that was started has not ended."""
        return bool(self.refs or self.adopted)

    def _start(self, job: Job) -> bool:
        check_code(job)
        task = self.ray.remote(**self.options)(execute)
        self.refs[task.remote(job, self.on_gpu, *self.arguments)] = job
        return True

    def ended(self) -> list[Ended]:
        """What has ended since the last call."""
        gone = super().ended()
        ready = self.ray.wait(list(self.refs), num_returns=len(self.refs), timeout=0)[0] if self.refs else []
        for ref in ready:
            job = self.refs.pop(ref)
            try:
                code = self.ray.get(ref)
                gone.append(Ended(job, code, NOT_STARTED if code is None else ""))
            except self.ray.exceptions.TaskCancelledError:
                gone.append(Ended(job, None, NOT_STARTED))
            except self.ray.exceptions.RayTaskError as error:
                cause = error.cause
                here = isinstance(cause, OSError)  # another machine may be able to
                gone.append(
                    Ended(job, None, _cannot_start(cause, job)) if here else Ended(job, None, str(cause), cause)
                )
            except self.ray.exceptions.RayError as error:  # the worker or its machine is gone
                gone.append(Ended(job, None, f"Ray: {' '.join(str(error).split())[:120]}"))
        return gone

    def stop(self, number: int) -> None:
        """Leave a file that all tasks look for; what has not begun is taken back."""
        super().stop(number)
        told = True
        try:
            with open(self.stop_file, "r+") as file:
                file.write(f"{number:02d}")
        except OSError:  # the folder is gone, say
            told = False
        for ref, job in list(self.refs.items()):
            if not (told and alive(job.dir)):
                self.ray.cancel(ref, force=not told)

    def close(self) -> None:
        """Take the file away that asks to stop."""
        self.stop_file.unlink(missing_ok=True)


def _of_tokens() -> str:
    """What to try where a cluster does not answer; empty where nothing is known.

    The first cluster that Ray starts here leaves a token. Later ones want it from all who join, but Ray sends it to no
    address by itself.
    """
    there = (Path.home() / TOKEN).is_file() and "RAY_AUTH_MODE" not in os.environ
    return f"; if it wants the token in ~/{TOKEN}: RAY_AUTH_MODE=token" if there else ""


def execute(job: Job, on_gpu: bool, threads: int, cache: str, stop_file: str) -> int | None:
    """Run a job on a worker of Ray; returns its exit status, None where a stop came first.

    Raises:
        Refused, CodeChanged, OSError: as `launch` does.
    """
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "") if on_gpu else ""  # without a share Ray leaves all GPUs visible
    where = f"{f'GPU {gpu} of ' if gpu else ''}{socket.gethostname()}"
    if _asked(stop_file):
        return None
    try:
        process = launch(job, where, threads, environment(gpu, threads, Path(cache)), detached=False)
    except CodeChanged as changed:
        raise CodeChanged(f"{changed} (seen on {socket.gethostname()})") from None
    except OSError as refused:
        raise OSError(refused.errno, f"{refused.strerror} on {socket.gethostname()}", refused.filename) from None
    told = 0
    while process.poll() is None:
        asked = _asked(stop_file)
        if asked not in (0, told):
            told = asked
            process.send_signal(asked)
        time.sleep(POLL_S)
    return process.returncode


def _asked(stop_file: str) -> int:
    """The signal that a sweep asks for in a file; 0 for none."""
    with suppress(OSError, ValueError):
        return int(Path(stop_file).read_text())
    return 0


# ---- Slurm -----------------------------------------------------------------------------------------------------------


class Slurm(Engine):
    """Array jobs, each task of which runs a few runs side by side as `Local` does. The queue outlives the sweep.

    Whether a task is over is asked of squeue: sacct is missing on many clusters. What became of its runs is in their
    directories.
    """

    waits_on_stop = False

    def __init__(
        self,
        root: Path,
        parameters: Mapping[str, str],
        per_gpu: int,
        per_task: int,
        threads: int | None,
        poll_s: float = 15.0,
    ) -> None:
        super().__init__()
        self.submitit: Any = extra("submitit", "slurm")
        given: dict[str, Any] = {key: int(value) if value.isdigit() else value for key, value in parameters.items()}
        cluster = given.pop("cluster", "slurm")
        self.debug = cluster == "debug"  # in this process, when asked whether it is done
        if cluster == "slurm" and not {"timeout_min", "slurm_time"} & given.keys():
            raise ValueError(
                "--slurm needs timeout_min=..., the minutes that a task may take; it is requeued after them"
            )
        try:
            self.executor = self.submitit.AutoExecutor(root / "slurm", cluster=cluster, slurm_max_num_timeout=1000)
            self.executor.update_parameters(name=root.name, **given)
        except (RuntimeError, NameError, AssertionError, ValueError) as error:
            raise ValueError(f"--slurm: {' '.join(str(error).split())}") from error
        self.record = root / "slurm.json"
        self.cache = root / ".cache" / "torchinductor"
        self.per_gpu, self.per_task, self.threads = per_gpu, per_task, threads
        self.poll_s = poll_s
        self.next_poll = 0.0
        self.collected: list[Job] = []
        self.tasks: dict[str, tuple[float, list[str]]] = {}
        """id -> when it was submitted, and the keys of its runs"""
        self.jobs: dict[str, Job] = {}
        self.handles: dict[str, Any] = {}
        known = read_json(self.record).get("tasks")
        if isinstance(known, dict) and not self.debug:
            queued = self._queued()
            self.tasks = {name: (task[0], task[1]) for name, task in known.items() if queued is None or name in queued}

    @property
    def busy(self) -> bool:
        """Whether anything that was started has not ended."""
        return bool(self.collected or self.jobs or self.adopted)

    def start(self, job: Job) -> bool:
        """Start a job, or watch the one that is in the queue."""
        if any(job.key in keys for _, keys in self.tasks.values()):  # in the queue, or running
            self.jobs[job.key] = job
            return True
        return super().start(job)

    def _start(self, job: Job) -> bool:
        check_code(job)
        self.collected.append(job)
        return True

    def ended(self) -> list[Ended]:
        """What has ended since the last call."""
        gone = super().ended()
        if self.collected:
            self._submit()
        if time.monotonic() < self.next_poll:
            return gone
        self.next_poll = time.monotonic() + self.poll_s
        queued = self._queued()
        for name, (submitted, keys) in list(self.tasks.items()):
            over = self.handles[name].done() if self.debug else queued is not None and name not in queued
            if not over:
                continue
            del self.tasks[name]
            for job in [self.jobs.pop(key) for key in keys if key in self.jobs]:
                launch = read_json(job.dir / "launch.json")
                seen = launch.get("ended", 0.0) >= submitted
                gone.append(
                    Ended(job, launch.get("exit") if seen else None, "" if seen else f"task {name} has vanished")
                )
            self._remember()
        return gone

    def farewell(self) -> str:
        """How to stop what is in the queue."""
        ids = sorted({name.partition("_")[0] for name in self.tasks})
        return f"The runs stay in the queue: scancel {' '.join(ids)} stops them, this command watches them again."

    def _submit(self) -> None:
        chunks = [self.collected[i : i + self.per_task] for i in range(0, len(self.collected), self.per_task)]
        work = [Task(chunk, self.per_gpu, self.per_task, self.threads, self.cache) for chunk in chunks]
        try:
            with self.executor.batch():
                handles = [self.executor.submit(task) for task in work]
        except (OSError, RuntimeError, self.submitit.core.utils.FailedJobError) as error:
            raise ValueError(f"sbatch has refused: {error}") from error
        for handle, chunk in zip(handles, chunks, strict=True):
            self.tasks[handle.job_id] = time.time(), [job.key for job in chunk]
            self.handles[handle.job_id] = handle
            self.jobs.update({job.key: job for job in chunk})
        self.collected = []
        self.next_poll = time.monotonic() + self.poll_s / 5
        self._remember()

    def _remember(self) -> None:
        write_json(self.record, {"tasks": self.tasks})

    def _queued(self) -> set[str] | None:
        """Ids of this user's tasks that wait or run; None if nobody says."""
        command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return set(done.stdout.split())


class Task:
    """One task of an array: its runs, side by side on what Slurm has given it."""

    def __init__(self, jobs: Sequence[Job], per_gpu: int, side_by_side: int, threads: int | None, cache: Path) -> None:
        self.jobs = jobs
        self.per_gpu = per_gpu
        """0 for runs on the CPU"""
        self.side_by_side = side_by_side
        self.threads = threads
        self.cache = cache

    def __call__(self) -> dict[str, Verdict]:
        """Run them; returns key -> verdict.

        When Slurm takes the machine back, SIGTERM reaches the runs first, and the signal that makes submitit requeue
        this task comes later. So what was stopped is not started again at once.
        """
        ranks = self.jobs[0].ranks
        slots = groups(gpus(), ranks) * self.per_gpu or [""] * self.side_by_side
        processes = len(slots) * ranks
        threads = self.threads or (max(1, cores() // processes) if processes > 1 else None)
        self.engine = Local(slots, threads, self.cache)
        return Drive(self.jobs, self.engine, delay=60.0).run()

    def checkpoint(self) -> Any:
        """Called by submitit before the time is up: let the runs save, and say what is to be done in the next life."""
        self.engine.stop(signal.SIGTERM)
        for child in self.engine.children.values():
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
        task = Task(self.jobs, self.per_gpu, self.side_by_side, self.threads, self.cache)
        return extra("submitit", "slurm").helpers.DelayedSubmission(task)
