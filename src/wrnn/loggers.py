"""The run's metrics over time as one CSV file, a row a step, that survives a crash and a resumption."""

import csv
import io
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger

from wrnn.files import write_atomically

STEP = "step"


class MetricsCSV(Logger):
    """Writes `metrics.csv`: column `step` counts optimizer steps done, the other columns are metrics.

    A row stands on disk as soon as it is known. What arrives later for the same step joins its row; a metric seen for
    the first time gets a column. When a run resumes, `truncate` drops what was written after the checkpoint, so that
    each step stands in the file once. Test metrics are left out: they are in results.json.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: list[dict[str, str]] | None = None
        self._columns = [STEP]
        self._last_row_at = 0

    @property
    def name(self) -> str:
        """Fixed; there is one such file in a run folder."""
        return "metrics"

    @property
    def version(self) -> str:
        """None of its own."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add metrics of Lightning's 0-based batch `step` to the row of step + 1."""
        values = {key: repr(float(value)) for key, value in metrics.items() if not key.startswith("test/")}
        values.pop("epoch", None)
        if not values or step is None:
            return
        rows = self._load()
        new_columns = [key for key in values if key not in self._columns]
        number = str(step + 1)
        same_row = bool(rows) and rows[-1][STEP] == number
        if same_row:
            rows[-1].update(values)
        else:
            rows.append({STEP: number, **values})
        if new_columns:
            self._columns += new_columns
            self._rewrite()
        else:
            self._write_last_row(replace=same_row)

    def truncate(self, step: int) -> None:
        """Drop all rows after that many optimizer steps."""
        rows = self._load()
        kept = [row for row in rows if int(row[STEP]) <= step]
        if len(kept) < len(rows):
            self._rows = kept
            self._rewrite()

    def _load(self) -> list[dict[str, str]]:
        """All rows so far. A last line that a crash cut short is dropped."""
        if self._rows is None:
            self._rows = []
            if self.path.exists():
                lines = self.path.read_text().splitlines(keepends=True)
                if lines and not lines[-1].endswith("\n"):
                    lines.pop()
                reader = csv.DictReader(lines)
                self._rows = list(reader)
                self._columns = list(reader.fieldnames or [STEP])
            self._rewrite()
        return self._rows

    def _rewrite(self) -> None:
        assert self._rows is not None
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self._rows:
            self._last_row_at = text.tell()
            writer.writerow(row)
        write_atomically(self.path, text.getvalue())

    def _write_last_row(self, replace: bool) -> None:
        assert self._rows is not None
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerow(self._rows[-1])
        with self.path.open("r+") as file:
            if replace:
                file.seek(self._last_row_at)
                file.truncate()
            else:
                self._last_row_at = file.seek(0, os.SEEK_END)
            file.write(text.getvalue())


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Curves by metric name: (steps, values), from a metrics.csv."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                if key != STEP and value:
                    steps, values = curves.setdefault(key, ([], []))
                    steps.append(int(row[STEP]))
                    values.append(float(value))
    return curves
