"""The metrics of a run: every value as a row of metrics.csv and as a point in TensorBoard."""

import csv
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from agents.checkpoint import CheckpointError, RunArgs, disk


class MetricLog:
    """metrics.csv and the event file of a run. Both are made by the first write; closed, they stay closed."""

    def __init__(self, run_dir: Path, args: RunArgs, presets: Sequence[str] = ()) -> None:
        self._dir = run_dir
        self._path = run_dir / "metrics.csv"
        self._args = args
        self._presets = presets
        self._csv: IO[str] | None = None
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None
        self._open = ExitStack()
        self._events = f"write TensorBoard's events in {run_dir}"

    @property
    def writer(self) -> SummaryWriter:
        """TensorBoard's writer."""
        if self._writer is None:
            with disk(self._events):
                self._writer = self._open_writer()
                self._open.callback(self._writer.close)
        return self._writer

    def write(self, step: int, wall_s: float, values: Mapping[str, float]) -> None:
        """Write the values of one step, and hand the rows to the operating system.

        Raises:
            RunError: the disk refuses.
        """
        args = self._args
        with disk(f"write {self._path}"):
            if self._csv is None:
                self._csv = open(self._path, "a", newline="")  # noqa: SIM115  lives as long as the run
                self._open.callback(self._csv.close)
                if self._csv.tell() == 0:
                    self._csv.write("exp_name,env_id,seed,metric,step,wall_s,value\n")
            rows = ([args.exp_name, args.env_id, args.seed, tag, step, wall_s, x] for tag, x in values.items())
            csv.writer(self._csv, lineterminator="\n").writerows(rows)
            self._csv.flush()
        # One event for all of them: five times cheaper than one add_scalar each.
        self._add_summary(Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()]), step)

    def sync(self) -> int:
        """Make what was written survive a power cut; returns the size of metrics.csv in bytes.

        Raises:
            CheckpointError: the disk refuses.
        """
        with disk(f"write the metrics in {self._dir}", CheckpointError):
            if self._writer is not None:
                self._writer.flush()
            if self._csv is not None:
                os.fsync(self._csv.fileno())
            return self._path.stat().st_size if self._path.exists() else 0

    def rewind(self, step: int, size: int) -> int:
        """Drop what was written after a step, when metrics.csv had this size; returns how many bytes it is too short.

        Raises:
            RunError: the disk refuses.
        """
        with disk(f"write {self._path}"):
            have = self._path.stat().st_size if self._path.exists() else 0
            if have > size:
                os.truncate(self._path, size)
            elif 0 < have < size:  # the next row must not be glued to half a one
                os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)
        if any(self._dir.glob("events.out.tfevents.*")):
            self._purge_step = step + 1
            self.writer.flush()  # now, not at the first write: what came after the step is void
        return max(size - have, 0)

    def end(self) -> None:
        """Tell TensorBoard's HParams tab that the run is done."""
        if self._writer is not None:
            *_, summary = hparams({}, {})
            self._add_summary(summary)

    def close(self) -> None:
        """Flush and release both files. Safe to call twice."""
        with disk(f"write the metrics in {self._dir}"):
            self._open.close()

    def _open_writer(self) -> SummaryWriter:
        """Open an event file. The first gets the settings, a later one hides what came after the checkpoint."""
        names = (path.name.split(".") for path in self._dir.glob("events.out.tfevents.*"))
        stamps = [int(name[3]) for name in names if name[3].isdigit()]
        if stamps and max(stamps) == int(time.time()):  # readers go by the second in the name
            time.sleep(1.0 - time.time() % 1.0)
        writer = SummaryWriter(str(self._dir), max_queue=1000, flush_secs=10, purge_step=self._purge_step)
        if not stamps:
            # In the run's own directory: SummaryWriter.add_hparams would make a second run beside it.
            settings = {name: _hparam(value) for name, value in asdict(self._args).items()}
            for summary in hparams(settings, {"eval/episodic_return": None})[:2]:
                writer._get_file_writer().add_summary(summary)
            writer.add_text("config", _config_table(self._args, self._presets))
        return writer

    def _add_summary(self, summary: Summary, step: int = 0) -> None:
        """Write one event."""
        with disk(self._events):
            self.writer._get_file_writer().add_summary(summary, step)


def to_floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers and tensors of one element as Python floats; one transfer per device.

    Raises:
        ValueError: a tensor with more than one element.
    """
    tensors: dict[torch.device, dict[str, Tensor]] = {}
    values: dict[str, float] = {}
    for tag, value in metrics.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"metric {tag} has shape {list(value.shape)}; a metric is one number")
            tensors.setdefault(value.device, {})[tag] = value.detach().reshape(())
            values[tag] = math.nan  # keeps its place
        else:
            values[tag] = float(value)
    for group in tensors.values():
        values.update(zip(group, map(float, torch.stack(list(group.values())).tolist()), strict=True))
    return values


def _hparam(value: Any) -> float | str:
    """A setting as the HParams tab takes it: it shows a bool as 0 or 1, and refuses lists."""
    if value is None or isinstance(value, bool):
        return {True: "on", False: "off", None: "none"}[value]
    return value if isinstance(value, int | float) else str(value)


def _config_table(args: RunArgs, presets: Sequence[str]) -> str:
    """Settings as a markdown table; those that differ from the defaults come first."""
    defaults = asdict(type(args)())
    values = asdict(args)
    rows = sorted(values, key=lambda name: values[name] == defaults[name])
    lines = [f"presets: {', '.join(presets) or 'none'}", "", "| setting | value | default |", "| --- | --- | --- |"]
    for name in rows:
        default = "" if values[name] == defaults[name] else defaults[name]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in (name, values[name], default)) + " |")
    return "\n".join(lines)
