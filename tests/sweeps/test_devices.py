"""A GPU belongs to one job at a time, whatever becomes of the job. The GPUs are names; no hardware is touched."""

import os
import random
import re
import signal
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from test_sweeps import SWEEP, finish, run_folders, start

from wrnn.errors import ConfigError
from wrnn.paper.ledger import load
from wrnn.sweeps.devices import lease, visible_gpus

JOB = """
import sys, time
from wrnn.sweeps.devices import lease
gpu = lease({gpus}, {jobs_per_gpu}, poll_seconds=0.01)
begun = time.monotonic()
print(gpu, flush=True)
time.sleep({seconds})
print(begun, time.monotonic(), flush=True)
"""


def jobs(tmp_path: Path, *jobs_per_gpu: int) -> list[tuple[str, float, float]]:
    """Start eight jobs at once, which in turn share a GPU so; returns which GPU each had, and from when to when."""
    draw = random.Random(0)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", JOB.format(gpus=["0", "1"], jobs_per_gpu=share, seconds=draw.uniform(0.05, 0.4))],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        )
        for share in jobs_per_gpu
    ]  # fmt: skip
    found = []
    for process in started:
        output, _ = process.communicate(timeout=60)
        gpu, begun, ended = output.split()
        found.append((gpu, float(begun), float(ended)))
    return found


def overlapping(found: list[tuple[str, float, float]]) -> int:
    return sum(
        a == b and max(start_a, start_b) < min(end_a, end_b)
        for (a, start_a, end_a), (b, start_b, end_b) in combinations(found, 2)
    )


def test_a_gpu_is_never_given_twice_and_none_is_left_idle(tmp_path: Path) -> None:
    found = jobs(tmp_path, *[1] * 8)
    assert overlapping(found) == 0 and {gpu for gpu, _, _ in found} == {"0", "1"}


def test_two_jobs_share_a_gpu_only_when_asked(tmp_path: Path) -> None:
    found = jobs(tmp_path, *[2] * 8)
    for _, moment, _ in found:
        at_once = [gpu for gpu, begun, ended in found if begun <= moment < ended]
        assert at_once.count("0") <= 2 and at_once.count("1") <= 2
    assert overlapping(found) > 0
    mixed = jobs(tmp_path, *[1, 2] * 4)
    assert all(overlapping([alone, other]) == 0 for alone in mixed[::2] for other in mixed if other is not alone)


def test_a_killed_job_gives_its_gpu_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", JOB.format(gpus=["7"], jobs_per_gpu=1, seconds=600)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "7\n"
    waiting = subprocess.Popen(
        [sys.executable, "-c", JOB.format(gpus=["7"], jobs_per_gpu=1, seconds=0)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=1)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert waiting.communicate(timeout=30)[0].startswith("7\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a2b, 3")
    assert visible_gpus() == ["GPU-1a2b", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_local_jobs_have_a_gpu_each(tmp_path: Path) -> None:
    axes = [*SWEEP, "trainer.accelerator=auto", "hydra/launcher=local", "seed=1,2,3"]
    environment = {"CUDA_VISIBLE_DEVICES": "4,5", "TMPDIR": str(tmp_path)}
    output = finish(start(tmp_path / "sweep", *axes, **environment), 0)
    logs = [(run / "log.txt").read_text() for run in run_folders(tmp_path / "sweep")]
    gpus = [re.findall(r"^GPU (\d)$", log, re.M) for log in logs]
    assert all(len(found) == 1 for found in gpus) and {found[0] for found in gpus} == {"4", "5"}, output
    axes[-1] += ",4"  # on one GPU: in the controller itself, one after the other
    environment["CUDA_VISIBLE_DEVICES"] = "4"
    output = finish(start(tmp_path / "sweep", *axes, "paths.ledger_dir=ledger", **environment), 0)
    assert output.count("was missing") == 3 and "4 of 4 runs finished" in output
    assert len(load(tmp_path / "sweep/ledger").records) == 4


def test_a_share_of_less_than_one_job_is_refused() -> None:
    with pytest.raises(ConfigError, match="jobs_per_gpu=0: must be at least 1"):
        lease(["0"], jobs_per_gpu=0)
