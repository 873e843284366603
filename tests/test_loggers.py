"""metrics.csv: a row a step, whatever happens in between."""

from pathlib import Path

from wrnn.loggers import MetricsCSV, read_metrics


def test_rows_merge_columns_grow_and_a_resumed_run_repeats_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCSV(path)
    log.log_metrics({"train/loss": 3.0, "epoch": 0}, 0)
    log.log_metrics({"train/loss": 2.0}, 1)
    log.log_metrics({"val/loss": 2.5}, 1)  # joins the row of its step, in a new column
    log.log_metrics({"train/loss": 1.0}, 2)
    log.log_metrics({"val/loss": 1.5}, 2)
    log.log_metrics({"test/loss": 9.0}, 2)
    whole = "step,train/loss,val/loss\n1,3.0,\n2,2.0,2.5\n3,1.0,1.5\n"
    assert path.read_text() == whole
    assert read_metrics(path) == {"train/loss": ([1, 2, 3], [3.0, 2.0, 1.0]), "val/loss": ([2, 3], [2.5, 1.5])}
    resumed = MetricsCSV(path)
    resumed.truncate(2)
    assert path.read_text() == "step,train/loss,val/loss\n1,3.0,\n2,2.0,2.5\n"
    resumed.log_metrics({"train/loss": 1.0}, 2)
    resumed.log_metrics({"val/loss": 1.5}, 2)
    assert path.read_text() == whole


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss\n1,3.0\n2,2.")
    log = MetricsCSV(path)
    log.log_metrics({"train/loss": 2.5}, 1)
    assert path.read_text() == "step,train/loss\n1,3.0\n2,2.5\n"
    assert list(tmp_path.iterdir()) == [path]
