"""Compiling the kernel at first use: whatever is wrong, training goes on and one line says what happened."""

import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from test_recurrence import distance, outcome, ring_arguments
from wrnn.recurrence import cpp, ring_recurrence

ROOT = Path(__file__).parents[1]
SCRIPT = """
import torch
from wrnn.recurrence import ring_recurrence
kernel = torch.full((2, 2, 3), 0.1, requires_grad=True)
last = ring_recurrence(
    torch.ones(3, 5, 1), torch.ones(2, 6, 1), torch.zeros(2, 6), kernel, torch.zeros(3, 2, 6), wants="last"
).last
last.sum().backward()
print("result", float(last.sum()), float(kernel.grad.sum()))
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    variables = {**os.environ, "WRNN_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env={**variables, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    """The lines about the recurrence; the result must be right."""
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    result = [float(word) for word in output.split("result")[1].split()[:2]]
    assert result == pytest.approx(expected(), rel=1e-5)
    return [line for line in output.splitlines() if "recurrence" in line]


def expected() -> list[float]:
    """By hand: all units are equal, so h_t = 0.6 h_{t-1} + 1."""
    states, total, gradient = [0.0], 36, 0.0
    for _ in range(5):
        states.append(0.6 * states[-1] + 1)
    for back, state in enumerate(reversed(states[:-1])):
        gradient += 0.6**back * 12 * 18 * state  # 12 weights, each used by 3 sequences at 6 neurons
    return [total * states[-1], gradient]


def test_two_processes_build_at_once_then_a_third_finds_it(tmp_path: Path) -> None:
    both = [start(tmp_path), start(tmp_path)]
    for process in both:
        assert any("compiling" in line for line in finish(process))
    again = finish(start(tmp_path))
    assert len(again) == 1 and "recurrence=auto: cpp, vectors of" in again[0]


def test_a_damaged_file_is_compiled_anew(tmp_path: Path) -> None:
    finish(start(tmp_path))
    (kept,) = tmp_path.glob("*.so")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert any(f"{kept} is damaged" in line for line in finish(start(tmp_path)))


def test_no_compiler_means_torch(tmp_path: Path) -> None:
    (line,) = finish(start(tmp_path, PATH=str(tmp_path), CXX=""))
    assert "torch, which is slower, because no C++ compiler is on the PATH" in line


def test_a_compiler_that_fails_means_torch(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'error: this compiler does not work' >&2; exit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    lines = finish(start(tmp_path, CXX=str(broken)))
    assert any("torch, which is slower, because" in line and "does not work" in line for line in lines)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    lines = finish(start(blocked / "cache"))
    assert any("cannot be written" in line for line in lines) and any("cpp, vectors" in line for line in lines)


def test_the_file_of_another_cpu_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRNN_CACHE_DIR", str(tmp_path))
    cpp._load_or_build("float")
    monkeypatch.setattr(cpp, "_cpu", lambda: "another machine")
    cpp._load_or_build("float")
    assert len({path.name.split("-")[1] for path in tmp_path.glob("*.so")}) == 2


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])
def test_narrower_vectors_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("names of this test are those of x86-64")
    monkeypatch.setenv("WRNN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cpp, "FLAGS", tuple(flag.replace("native", level) for flag in cpp.FLAGS))
    monkeypatch.setattr(cpp, "_LIBRARIES", {})
    arguments = ring_arguments(3, 20, 2, 7, 21, 5, outputs=3)
    found = outcome(ring_recurrence, arguments, "readout", backend="cpp", nonlinearity="tanh")
    truth = outcome(ring_recurrence, arguments, "readout", backend="reference", nonlinearity="tanh")
    assert (
        cpp.describe(torch.zeros(1).double())
        == {"x86-64": "vectors of 128 bits", "x86-64-v3": "vectors of 256 bits"}[level]
    )
    assert all(distance(a, b) < 1e-12 for a, b in zip(found, truth, strict=True))


def test_wider_vectors_compile(tmp_path: Path) -> None:
    """AVX-512: compiled only, because the machine may not have it."""
    if platform.machine() != "x86_64":
        pytest.skip("names of this test are those of x86-64")
    flags = [flag.replace("native", "x86-64-v4") for flag in cpp.FLAGS]
    cpp._compile([cpp._compiler()[0], *flags, "-Wall", "-Wextra", "-Werror", "-DREAL=float", str(cpp.SOURCE)], tmp_path)


def test_races_stands_on_all_that_the_kernel_calls_of_openmp() -> None:
    """`make races` without its detector: a link error, or another result on four threads than on one."""
    if not shutil.which("g++") or sys.platform != "linux":
        pytest.skip("the stand-in for OpenMP is that of GCC on Linux")
    done = subprocess.run(["make", "races", "RACES="], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("results on 1 and 4 threads are the same") == 2
