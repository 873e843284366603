"""The benchmark compares like with like."""

import json
from pathlib import Path

import pytest
import torch

from conftest import Compose
from wrnn.benchmark import ReleasedLoop, batch_of, main
from wrnn.training import build


@pytest.mark.parametrize("model", ["wrnn", "irnn"])
@pytest.mark.parametrize("task", ["copy", "adding"])
def test_both_variants_compute_the_same(compose_config: Compose, model: str, task: str) -> None:
    parts = build(compose_config(f"model={model}", f"task={task}", "init.bias=pytorch", "input_init.bias=pytorch"))
    batch = batch_of(parts.task)
    found = parts.readout(ReleasedLoop(parts.core, parts.objective.last_only)(batch.inputs))
    torch.testing.assert_close(found, parts.module(batch.inputs), rtol=1e-4, atol=1e-4)


def test_the_table_is_written(tmp_path: Path) -> None:
    small = ["--set", "task.datamodule.batch_size=4", "task.datamodule.delay=1"]
    main(["--model", "irnn", "--task", "copy", "--repeats", "1", "--output", str(tmp_path / "x/bench.json"), *small])
    written = json.loads((tmp_path / "x/bench.json").read_text())
    row = written["rows"][0]
    assert row["ratio"] == pytest.approx(row["ours_ms"] / row["released_ms"]) and row["batch_size"] == 4
    assert written["threads"] >= 1 and written["cpu"]
