"""The benchmark compares like with like."""

import json
from pathlib import Path

import pytest
import torch

from conftest import Compose
from wrnn.benchmark import EagerLoop, ReleasedLoop, batch_of, main
from wrnn.training import build


@pytest.mark.parametrize("model", ["wrnn", "irnn"])
@pytest.mark.parametrize("task", ["copy", "adding"])
def test_all_variants_compute_the_same(compose_config: Compose, model: str, task: str) -> None:
    parts = build(compose_config(f"model={model}", f"task={task}", "init.bias=pytorch", "input_init.bias=pytorch"))
    batch = batch_of(parts.task)
    for loop in (ReleasedLoop, EagerLoop):
        found = parts.readout(loop(parts.core, parts.objective.last_only)(batch.inputs))
        torch.testing.assert_close(found, parts.module(batch.inputs), rtol=1e-4, atol=1e-4)


def test_a_variant_that_fails_loses_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: EagerLoop, inputs: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(EagerLoop, "forward", forward)
    small = ["--device", "cpu", "--set", "task.datamodule.batch_size=4", "task.datamodule.delay=1"]
    rows = main(["--model", "wrnn", "--task", "copy100", "--repeats", "1", "--variant", "eager", "torch", *small])
    assert [(row.variant, row.error) for row in rows] == [("eager", "no room"), ("torch", None)]
    assert rows[1].milliseconds > 0


def test_the_table_is_written(tmp_path: Path) -> None:
    small = ["--device", "cpu", "--set", "task.datamodule.batch_size=4", "task.datamodule.delay=1"]
    variants = ["--variant", "released", "torch", "cpp"]
    output = tmp_path / "x/bench.json"
    main(["--model", "wrnn", "--task", "copy100", "--repeats", "1", "--output", str(output), *variants, *small])
    written = json.loads(output.read_text())
    released, *ours = written["rows"]
    assert [row["variant"] for row in ours] == ["torch", "cpp"] and released["ratio"] == 1
    for row in ours:
        assert row["ratio"] == pytest.approx(row["milliseconds"] / released["milliseconds"]) and row["batch_size"] == 4
        assert row["share"] == pytest.approx(row["gflops"] / written["peak_gflops"])
    assert written["threads"] >= 1 and written["cpu"]
