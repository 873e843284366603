"""Runs are grouped, ranked and shown as they are: made-up run folders with known results, and a page in a browser."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image

from conftest import ROOT, Compose
from wrnn.compare import figures
from wrnn.compare.command import main
from wrnn.compare.groups import Comparison, compare
from wrnn.compare.records import load
from wrnn.compare.tables import heading, ranked
from wrnn.errors import ConfigError

MakeRun = Callable[..., Path]
HOSTILE = "<script src=https://example.org/x.js></script> | 50% & a_b \x1b[31m\n<a href='http://example.org'>x</a>"


@pytest.fixture
def make_run(compose_config: Compose, tmp_path: Path) -> MakeRun:
    """`make_run("copy", "wrnn", seed, value, "optimizer.lr=1e-2", ...)`: a run folder with that test result, below
    `tmp_path/runs`; without a value, one that did not finish.
    """

    def make(task: str, model: str, seed: int, value: Any, *choices: str, folder: str = "", **results: Any) -> Path:
        run = tmp_path / "runs" / (folder or f"{model}_{task}_s{seed}-{len(list(tmp_path.glob('runs/*'))):03}")
        config = compose_config(f"task={task}", f"model={model}", f"seed={seed}", *choices, f"paths.run_dir={run}")
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        monitor = config.task.monitor.metric
        curve = [f"{step},{(value or 1) + 1 / step!r}\n" for step in range(100, 1100, 100)]
        (run / "metrics.csv").write_text(f"step,{monitor}\n{''.join(curve)}")
        if value is not None:
            found = {monitor.replace("val/", "test/"): value, monitor: value, "seconds": 10.0, **results}
            (run / "results.json").write_text(json.dumps(found))
        return run

    return make


def compared(tmp_path: Path) -> Comparison:
    return compare(load([tmp_path / "runs"]))


def by_label(comparison: Comparison) -> dict[str, Any]:
    return {row["label"]: row for row in comparison.groups.to_dict("records")}


def test_means_spreads_and_ranks(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, value in ((1, 0.1), (2, 0.2), (3, 0.6)):
        make_run("copy", "wrnn", seed, value, seconds=10.0 * seed)
        make_run("smnist", "wrnn", seed, value)
    make_run("copy", "irnn", 1, 0.25)
    make_run("smnist", "irnn", 1, 0.25)
    groups = compared(tmp_path).groups
    assert list(groups["task"] + " " + groups["model"]) == ["copy irnn", "copy wrnn", "smnist wrnn", "smnist irnn"]
    assert list(groups["rank"]) == [1, 2, 1, 2]  # 0.25 is below a mean of 0.3, which is good as a loss only
    for row in groups[groups["model"] == "wrnn"].to_dict("records"):
        assert row["mean"] == pytest.approx(0.3) and row["n"] == 3
        assert row["sd"] == pytest.approx(math.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 2))
        assert row["best"] == (0.6 if row["mode"] == "max" else 0.1)
    assert math.isnan(groups["sd"][0]) and groups["n"][0] == 1
    assert groups["seconds"][1] == 20.0
    over = compare(load([tmp_path / "runs"]), "seconds")
    assert list(over.groups["metric"].unique()) == ["seconds"] and list(over.groups["mean"]) == [10, 20, 10, 10]


def test_a_metric_that_is_asked_for_is_ranked_by_what_is_better(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("copy", "wrnn", 1, 0.1, **{"test/accuracy": 0.4, "steps_per_second": 9.0})
    make_run("copy", "irnn", 1, 0.2, **{"test/accuracy": 0.9, "steps_per_second": 8.0})
    for metric, first, which in (
        (None, "wrnn", "lower"), ("test/accuracy", "irnn", "higher"), ("steps_per_second", "wrnn", "higher"),
    ):  # fmt: skip
        found = compare(load([tmp_path / "runs"]), metric)
        assert found.groups["model"][0] == first and f", {which} is better" in heading(found.tasks[0])


def test_only_seeds_are_averaged(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run("copy", "wrnn", seed, 0.1)
        make_run("copy", "wrnn", seed, 0.2, "trainer.max_steps=7")
        make_run("copy", "wrnn", seed, 0.3, "init=pytorch")
        make_run("copy", "wrnn", seed, 0.4, "task.datamodule.order_seed=9")  # one order of the data for all of them
        make_run("copy", "wrnn", seed, 0.5, "recurrence=reference", "optimizer=sgd", "optimizer.lr=0.01")
    make_run("copy", "wrnn", 4, None, "optimizer=sgd", "optimizer.lr=0.01")
    groups = by_label(compared(tmp_path))
    usual = "order_seed the run's seed, init shift, optimizer Adam, lr 0.001, max_steps 60000"
    assert {label: (row["n"], row["failed"]) for label, row in groups.items()} == {
        f"wrnn, {usual}": (3, 0),
        f"wrnn, {usual.replace('60000', '7')}": (3, 0),
        f"wrnn, {usual.replace('shift', 'pytorch')}": (3, 0),
        f"wrnn, {usual.replace(usual[11:25], '9')}": (3, 0),
        f"wrnn, {usual.replace('Adam', 'SGD').replace('0.001', '0.01')}": (3, 1),
    }


def test_seeds_of_data_that_happen_to_equal_the_run_s_are_settings(make_run: MakeRun, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for permutation in (1, 2, 3):
            make_run("psmnist", "wrnn", seed, permutation / 10, f"task.datamodule.permutation_seed={permutation}")
    groups = compared(tmp_path).groups
    assert groups[["permutation_seed", "mean", "n"]].to_numpy().tolist() == [
        ["3", pytest.approx(0.3), 3], ["2", pytest.approx(0.2), 3], ["1", pytest.approx(0.1), 3],
    ]  # fmt: skip


def test_budgets_and_runs_that_gave_up_are_told(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("psmnist", "wrnn", 1, 0.9, "trainer.max_epochs=1")
    make_run("psmnist", "irnn", 1, 0.8, "trainer.max_epochs=100", gave_up="val/accuracy 0.1 at step 445")
    make_run("psmnist", "irnn", 2, 0.7, "trainer.max_epochs=100", "trainer.gradient_clip_val=1000.0")
    comparison = compared(tmp_path)
    frame = ranked(comparison, comparison.tasks[0])
    assert frame[["model", "max_epochs", "n", "gave_up"]].to_numpy().tolist() == [
        ["wrnn", "1", "1", "0"], ["irnn", "100", "2", "1"],  # a clip of 1000.0 is one of 1000
    ]  # fmt: skip


def test_an_average_over_different_code_is_told(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2, 3):
        made = make_run("copy", "wrnn", seed, 0.5)
        code = {"wrnn.cores.wrnn": "new" if seed == 3 else "old", "wrnn.cores.base": "same"}
        (made / "environment.json").write_text(json.dumps({"starts": [{"code": code}]}))
    assert list(compared(tmp_path).groups["n"]) == [3]
    assert "and 2 more are averaged, but differ in wrnn.cores.wrnn\n" in "".join(capsys.readouterr())


def test_a_seed_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("copy", "wrnn", 1, 0.9, folder="wrnn_copy_s1/2026-01-01")
    make_run("copy", "wrnn", 1, 0.1, folder="wrnn_copy_s1/2026-01-02")
    make_run("copy", "wrnn", 1, None, folder="wrnn_copy_s1/2026-01-03")
    comparison = compared(tmp_path)
    assert list(comparison.runs["counted"]) == [False, True, False]
    assert comparison.groups[["mean", "n", "failed"]].to_numpy().tolist() == [[0.1, 1, 0]]
    for name, date in (("wrnn_copy_s1/2026-01-01", "2026-03-02"), ("wrnn_copy_s1/2026-01-02", "2026-03-01")):
        (tmp_path / "runs" / name / "environment.json").write_text(json.dumps({"starts": [{"date": date}]}))
    assert list(compared(tmp_path).runs["counted"]) == [True, False, False]  # by their starts, whatever they are called


def test_groups_without_a_result_are_last_and_say_why(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("adding", "wrnn", 1, 0.5, solved_step=300)
    make_run("adding", "wrnn", 2, 0.7, solved_step=None)
    diverged = make_run("adding", "irnn", 1, None, "optimizer.lr=1")
    (diverged / "outcome.json").write_text(json.dumps({"outcome": "diverged", "reason": "loss nan", "exit_code": 3}))
    make_run("adding", "irnn", 2, float("nan"), "optimizer.lr=1")
    first, last = compared(tmp_path).groups.to_dict("records")
    assert (first["rank"], first["solved"], first["solved_step"], first["why"]) == (1, 1, 300, "")
    assert last["failed"] == 2 and last["n"] == 0 and pd.isna(last["rank"])
    assert last["why"] == "diverged: loss nan; no metric: test/mse is nan"


def test_every_file_holds_the_same_numbers(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, value in ((1, 0.123456), (2, 0.2), (3, 0.6)):
        make_run("copy", "wrnn", seed, value)
        make_run("copy", "irnn", seed, 10 * value)
        make_run("psmnist", "wrnn", seed, value)
    main([str(tmp_path / "runs")])
    output = tmp_path / "runs/comparison"
    with (output / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["model"]) for row in rows] == [("copy", "wrnn"), ("copy", "irnn"), ("psmnist", "wrnn")]
    numbers = [[f"{float(row[key]):.{digits}g}" for key, digits in (("mean", 4), ("sd", 2))] for row in rows]
    assert numbers[0] == ["0.3078", "0.26"]
    page, found = (output / "index.html").read_text(), {}
    cells = [
        re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr.*?</tr>", page[page.index("<body>") :])
    ]
    found["html"] = [row for row in cells if row]
    tex, markdown = (output / "comparison.tex").read_text(), (output / "comparison.md").read_text()
    found["tex"] = [line[:-2].strip().split(" & ") for line in tex.splitlines() if re.match(r"\d+ &", line)]
    found["md"] = [re.split(r" *\| *", line)[1:-1] for line in markdown.splitlines() if re.match(r"\| +\d", line)]
    found["terminal"] = [re.split(r" *│ *", line)[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    for kind, lines in found.items():
        assert [line[2:4] for line in lines] == numbers, kind
        assert [line[1] for line in lines] == ["wrnn", "irnn", "wrnn"], kind
    with (output / "runs.csv").open() as file:
        assert sorted(row["value"] for row in csv.DictReader(file))[:2] == ["0.123456", "0.123456"]


DAMAGE = {
    "results.json": ['{"test/cross_entropy": 0.', "[1, 2]", "\0\0"],
    "config.yaml": ["a: [", "- 1", "seed: 1\nmodel: {name: x}\n", "task: copy\n", "\0"],
    "outcome.json": ["[]", "{"],
    "metrics.csv": ["step,val/cross_entropy\n1,0.5x\n", "steps,val/cross_entropy\n1,0.5\n", "step\n1,2,3\n"],
}


@pytest.mark.parametrize("file", DAMAGE)
def test_damaged_files_cost_one_line_and_no_other_run(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    make_run("copy", "irnn", 1, 0.25)
    damaged = [make_run("copy", "wrnn", seed, 0.5, folder=f"{seed}") for seed in range(len(DAMAGE[file]))]
    for run, text in zip(damaged, DAMAGE[file], strict=True):
        (run / file).write_text(text)
    main([str(tmp_path / "runs")])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(damaged)
    for run, line in zip(damaged, said, strict=True):
        assert line.startswith(f"warning: {run / file}: ") and len(line) > len(f"warning: {run / file}: ") + 5
    groups = by_label(compared(tmp_path))
    assert (groups["irnn"]["mean"], groups["irnn"]["n"]) == (0.25, 1)
    lost = {"results.json": (0, 3), "outcome.json": (2, 0), "metrics.csv": (3, 0)}.get(file)
    assert lost is None or (groups["wrnn"]["n"], groups["wrnn"]["failed"]) == lost
    with (tmp_path / "runs/comparison/runs.csv").open() as rows:
        assert sum(row["state"] == "unreadable" for row in csv.DictReader(rows)) == (
            len(damaged) if file in ("results.json", "config.yaml") else 0
        )


def test_what_cannot_be_compared_is_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("copy", "wrnn", 1, 0.5)
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "nowhere"], "nowhere: no such folder"),
        ([run, "--metric", "test/acuracy"], r"--metric=test/acuracy: no run has it; there are: seconds, test/cross"),
        ([run, "--output", run / "config.yaml"], r"--output=.*: cannot be written to"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([str(word) for word in words])
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="of 1 runs found none can be read"):
        main([str(run)])
    done = subprocess.run(
        [sys.executable, ROOT / "src/compare.py", "empty"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and re.fullmatch("error: empty: no run found; .*\n", done.stderr)


class Fetched(HTMLParser):
    """Collects tags, and what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loads = ("src", "href", "srcset", "data", "action", "poster", "background", "style")
        self.addresses += [str(value) for key, value in attributes if key in loads and value]


def test_the_page_needs_no_network_and_is_the_same_each_time(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("copy", "wrnn", 1, 0.5)
    make_run("copy", "wrnn", 1, 0.6, f"model.name={json.dumps('irnn</script><img src=//x>')}")
    failed = make_run("copy", "wrnn", 2, None, "optimizer.lr=1")
    (failed / "outcome.json").write_text(json.dumps({"outcome": "crashed", "reason": HOSTILE}))
    make_run("copy", "irnn", 2, None)
    Image.new("RGB", (8, 4), "red").save(tmp_path / "runs/wrnn_copy_s1-000/state_over_time.png")
    main([str(tmp_path / "runs"), "--output", str(tmp_path / "a")])
    shutil.copytree(tmp_path / "runs", tmp_path / "elsewhere/runs")
    main([str(tmp_path / "elsewhere/runs"), "--output", str(tmp_path / "b")])
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
    text = (tmp_path / "a/index.html").read_text()
    page = Fetched()
    page.feed(text)
    assert [address[:22] for address in page.addresses if not address.startswith(("#", "height"))] == [
        "data:image/png;base64,"
    ]
    assert not {"link", "iframe", "object", "base"} & set(page.tags)
    assert "&lt;script src=https://example.org/x.js&gt;&lt;/script&gt; | 50% &amp; a_b [31m" in text
    assert str(tmp_path) not in text
    assert r"/script\textgreater{} \textbar{} 50\% \& a\_b [31m" in (tmp_path / "a/comparison.tex").read_text()
    assert r"&lt;/script> \| 50% &amp; a_b [31m" in (tmp_path / "a/comparison.md").read_text()


def test_a_picture_shows_the_mean_of_a_group_and_the_best_on_top(make_run: MakeRun, tmp_path: Path) -> None:
    for seed, value in ((1, 0.1), (2, 0.2), (3, 0.6)):
        make_run("smnist", "wrnn", seed, value)
    make_run("smnist", "irnn", 1, 0.7)
    make_run("copy", "wrnn", 1, 0.9)
    again = make_run("copy", "wrnn", 1, 0.3)
    make_run("copy", "irnn", 1, 0.2)
    runs = compared(tmp_path)
    for task, expected in (("smnist", {"irnn": (0.7, 0.7, 0.7), "wrnn": (0.3, 0.1, 0.6)}),
                           ("copy", {"irnn": (0.2, 0.2, 0.2), "wrnn": (0.3, 0.3, 0.3)})):  # fmt: skip
        (shown,) = (one for one in runs.tasks if one.name == task)
        named = [line for line in figures.curves(runs, shown).data if line.name]
        assert [line.name.split(",")[0] for line in named] == list(expected)  # the best first
        for line, values in zip(named, expected.values(), strict=True):
            assert line.y[-1] == pytest.approx(values[0] + 0.001)
            assert line.customdata[-1][:2] == pytest.approx([value + 0.001 for value in values[1:]])
        top = max(figures.parallel(runs, shown).data, key=lambda line: line.y[-1])
        assert top.name.startswith("1. irnn") and top.y[-1] == 1
    for folder, colour in ((again, "red"), *((one, "blue") for one in (tmp_path / "runs").glob("*_smnist_*"))):
        Image.new("RGB", (8, 4), colour).save(folder / "state_over_time.png")
    main([str(tmp_path / "runs")])
    text = (tmp_path / "runs/comparison/index.html").read_text()
    assert re.findall(r"<figcaption>(?:\w+/)?(\w+?_s1)-\d+, [\w/]+ ([\d.]+)<", text) == [("irnn_smnist_s1", "0.7")]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(page: Path, folder: Path) -> tuple[str, list[str], Path]:
    """The page's DOM after its scripts have run, what it wrote to the console as errors, and a screenshot."""
    picture = folder / "page.png"
    words = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--window-size=1280,2400", "--virtual-time-budget=10000", "--enable-logging=stderr",
    ]  # fmt: skip

    def start(action: str) -> subprocess.CompletedProcess[str]:
        profile = f"--user-data-dir={tempfile.mkdtemp(dir=folder)}"
        return subprocess.run([*words, profile, action, page.as_uri()], capture_output=True, text=True, timeout=120)

    dumped, shown = start("--dump-dom"), start(f"--screenshot={picture}")
    said = (dumped.stderr + shown.stderr).splitlines()
    return dumped.stdout, [line for line in said if "CONSOLE" in line], picture


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path")
def test_the_page_in_a_browser(make_run: MakeRun, tmp_path: Path) -> None:
    for task in ("copy", "smnist"):
        for model, value in (("wrnn", 0.2), ("irnn", 0.4)):
            for seed in (1, 2, 3):
                make_run(task, model, seed, value + 0.01 * seed)
        failed = make_run(task, "irnn", 4, None)
        (failed / "outcome.json").write_text(json.dumps({"outcome": "crashed", "reason": HOSTILE}))
    main([str(tmp_path / "runs")])
    dom, said, picture = browse(tmp_path / "runs/comparison/index.html", tmp_path)
    assert said == []
    assert 'data-title="Zoom"' in dom and 'data-title="Share' not in dom  # plotly's offer to upload the data
    for name in ("curves-0", "settings-0", "curves-1", "settings-1"):
        start = dom.index(f'id="{name}"')
        assert "js-plotly-plot" in dom[start : start + 300] and "main-svg" in dom[start : start + 3000], name
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape == (2400, 1280, 3)
    for colour in ((0x1F, 0x5F, 0xBF), (0xD9, 0x48, 0x0F)):  # the curves of the first two groups
        assert (pixels == colour).all(axis=-1).sum() > 200
