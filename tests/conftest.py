"""Shared fixtures: configs composed as on the command line, one thread, no network."""

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from omegaconf import DictConfig

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS looks once, Lightning asks for it only later
os.environ["WRNN_TUNE"] = "0"  # a GPU would try six kernels at each of the many sizes here
INTERPRETS = not torch.cuda.is_available()
if INTERPRETS:
    os.environ["TRITON_INTERPRET"] = "1"  # the GPU's kernels in numpy; Triton looks when it is imported, as below

from wrnn import schema
from wrnn.config import digest, identity
from wrnn.paper.cells import Experiments, experiments_in
from wrnn.paper.ledger import SCHEMA, Record

try:
    TRITON = [int(part) for part in version("triton").split(".")[:2]]
except PackageNotFoundError:
    TRITON = [0, 0]
needs_triton = pytest.mark.skipif(
    TRITON < ([3, 8] if INTERPRETS and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0" else [3, 3]),
    reason="no Triton, or its interpreter is too old for this NumPy (3.6 takes 2.3)",
)

ROOT = Path(__file__).parents[1]
CONF = schema.CONF

Compose = Callable[..., DictConfig]
MakeRecord = Callable[..., Record]

# A run of seconds on made-up data: the smallest thing that goes through everything.
TINY_COPY = (
    "model=wrnn", "task=copy", "trainer=cpu", "task.datamodule.delay=3", "task.datamodule.batch_size=8",
    "task.datamodule.batches_per_epoch=6", "task.datamodule.num_val=16", "task.datamodule.num_test=16",
    "model.core.num_channels=2", "model.core.ring_size=7", "trainer.log_every_n_steps=1", "trainer.max_steps=15",
)  # fmt: skip
TINY_PSMNIST = (
    "model=wrnn", "task=psmnist", "images=fake_mnist", "trainer=cpu", "task.datamodule.batch_size=4",
    "task.datamodule.num_val=8", "model.core.num_channels=1", "model.core.ring_size=5", "trainer.limit_train_batches=6",
    "trainer.log_every_n_steps=1", "trainer.max_epochs=3", "trainer.limit_test_batches=1",
)  # fmt: skip


def option_names(group: str) -> list[str]:
    """Every option of a config group, found by listing its folder."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(autouse=True)
def one_thread_and_every_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two busy test processes on two cores must not wait for each other's threads; a GPU's truth is no TF32."""
    torch.set_num_threads(1)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def compose_config(tmp_path: Path) -> Compose:
    """`compose_config("task=copy", ...)`: the config of that command line, writing below `tmp_path`."""

    def make(*overrides: str, config_dir: Path = CONF) -> DictConfig:
        return schema.compose_config(f"paths.runs_dir={tmp_path / 'runs'}", *overrides, conf=config_dir)

    return make


@pytest.fixture(scope="session")
def experiments() -> Experiments:
    """The real experiments, composed once a session."""
    return experiments_in(CONF)


@pytest.fixture
def make_record(experiments: Experiments) -> MakeRecord:
    """`make_record("wrnn_copy_t80", seed=1, share=0.5, **{"test/mse": 1e-3})`."""
    count = iter(range(10**6))

    def make(name: str, seed: int = 0, share: float = 1.0, preset: str = "corrected", **results: Any) -> Record:
        cfg = experiments.config(name, preset)
        unit, published = experiments.budget(name, preset)
        used = {"steps": 100, "epochs": 1, unit: published * share}
        settings = identity(cfg)
        settings["seed"] = settings["task"]["datamodule"]["order_seed"] = seed
        return Record(
            schema=SCHEMA,
            id=f"{next(count):012x}",
            identity=digest(settings),
            model=cfg.model.name,
            task=cfg.task.name,
            preset=preset,
            seed=seed,
            settings=settings,
            budget={**used, "limit_val_batches": 1.0, "limit_test_batches": 1.0},
            results={**used, **results},
            curves={"val/mse": ([1, 2], [0.5, 0.25])},
            steps_per_second=1.0,
            hardware={"cpu": "none", "threads": 1, "gpu": None},
            commits=["0123456"],
            versions={},
            date=f"2026-01-0{1 + seed}",
            overrides=[f"experiment={name}", f"seed={seed}"],
        )

    return make
