"""The same sweep on a real SLURM and on a real Ray, disturbed; `pytest -m cluster`, see tests/README.md."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_sweeps import SWEEP, finish, outcomes, run_folders, start, wait_for

from test_resume import assert_same_run
from wrnn.files import read_json

pytestmark = pytest.mark.cluster
AXES = [*SWEEP, "trainer.max_steps=3000", "seed=1,2,3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep without a cluster and without trouble."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder, *AXES, "hydra/launcher=local"), 0)
    return folder


def assert_same_sweep(folder: Path, whole: Path) -> None:
    for run in run_folders(whole):
        assert_same_run(folder / run.relative_to(whole), run)


@pytest.mark.skipif("SLURM_CONF" not in os.environ or not shutil.which("sbatch"), reason="no SLURM")
def test_slurm_with_a_job_requeued_one_preempted_and_one_cancelled(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "slurm"
    launcher = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2"]
    process = start(folder, *AXES, *launcher)
    done = set()
    for seed, order in ((1, "scontrol requeue {}"), (2, "scancel --signal=USR2 {}"), (3, "scancel {}")):
        wait_for(f"runs/multirun/*s{seed}*/checkpoints/last.ckpt", folder=folder, seconds=300)
        job = next(path.parent.name for path in folder.glob("runs/multirun/.submitit/*/*_log.out")
                   if path.parent.name.endswith(f"_{seed - 1}"))  # fmt: skip
        subprocess.run(order.format(job).split(), check=True)
        done.add(job)
    output = finish(process, 5)
    assert sorted(outcomes(folder).values()) == ["finished", "finished", "stopped"], output
    finish(start(folder, *AXES, *launcher), 0)
    assert_same_sweep(folder, whole)
    starts = [read_json(run / "environment.json") for run in run_folders(folder)]
    assert [len(found["starts"]) for found in starts if found] == [2, 2, 2] and len(done) == 3


@pytest.mark.skipif(not shutil.which("ray", path=str(Path(sys.executable).parent)), reason="no Ray")
def test_ray_on_this_machine(tmp_path: Path, whole: Path) -> None:
    folder = tmp_path / "ray"
    finish(start(folder, *AXES, "hydra/launcher=ray_local", RAY_USAGE_STATS_ENABLED="0"), 0)
    assert_same_sweep(folder, whole)
