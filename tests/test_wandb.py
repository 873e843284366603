"""W&B without an account: offline runs read back from disk, online runs and pages against a server on this machine."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from conftest import CONF, ROOT, TINY_COPY, TINY_PSMNIST, Compose
from wandb_server import ENTITY, Run, Server
from wrnn import schema
from wrnn.errors import ConfigError, DivergedError, Interrupted
from wrnn.loggers import MetricsCSV, read_metrics
from wrnn.module import SequenceModule
from wrnn.training import train
from wrnn.wandb_logger import facts, known_id

# wandb-workspaces 0.4.13, when it is first imported.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style .@validator. validators:DeprecationWarning")

TINY = {"copy": TINY_COPY, "psmnist": TINY_PSMNIST}
STEP = "trainer/global_step"
DIVERGES = (
    "optimizer=sgd", "optimizer.lr=1e30", "model.core.nonlinearity=identity", "trainer.gradient_clip_val=null",
    "task.datamodule.batches_per_epoch=2", "trainer.max_steps=60",
)  # fmt: skip


@pytest.fixture(scope="module")
def set_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """`set_up(WANDB_MODE=...)`: a fresh W&B session that knows nothing of this user; none outlives the tests."""
    home = tmp_path_factory.mktemp("home")
    quiet = {
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DISABLE_GIT": "true",
    }
    places = {f"WANDB_{name}_DIR": str(home) for name in ("CONFIG", "CACHE", "DATA", "ARTIFACT")}
    with pytest.MonkeyPatch.context() as patch:

        def start(**environment: str) -> None:
            wandb.teardown()
            for name in [name for name in os.environ if name.startswith("WANDB_")]:
                patch.delenv(name)
            for name, value in {"NETRC": str(home / "netrc"), **quiet, **places, **environment}.items():
                patch.setenv(name, value)

        yield start
        wandb.teardown()


@pytest.fixture
def server(set_up: Callable[..., None]) -> Iterator[Server]:
    """A server, and a client that is logged in to it."""
    with Server() as server:
        set_up(WANDB_BASE_URL=server.url, WANDB_API_KEY="0" * 40)
        yield server
        wandb.teardown()
    assert not server.refused


@dataclass
class OnDisk:
    """An offline run as it stands on disk."""

    record: dict[str, Any]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int

    def keys(self) -> set[str]:
        return {key for row in self.history for key in row}


def read_back(path: Path) -> OnDisk:
    def inspect(*options: str) -> str:
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    records = [json.loads(line) for line in inspect().splitlines()]
    whole = json.loads(inspect("--summary"))
    run = next(record["run"] for record in records if record["type"] == "run")
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    return OnDisk(run, whole["config"], history, whole["summary"], whole["exit_code"])


def parts(folder: Path) -> list[Path]:
    """What W&B wrote offline in a run folder, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*"))


@pytest.fixture(scope="module")
def runs(set_up: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, OnDisk]]:
    """A finished offline run of each kind of metrics; tests read them and leave them alone."""
    set_up(WANDB_MODE="offline")
    torch.set_num_threads(1)
    found = {}
    for task, choices in TINY.items():
        folder = tmp_path_factory.mktemp(task) / "run"
        train(schema.compose_config(*choices, "logger=wandb", f"paths.run_dir={folder}"))
        (part,) = parts(folder)
        found[task] = folder, read_back(part)
    return found


@pytest.mark.parametrize("task", TINY)
def test_an_offline_run_says_what_it_is(runs: dict[str, tuple[Path, OnDisk]], task: str) -> None:
    folder, run = runs[task]
    assert run.record["run_group"] == f"wrnn_{task}" and run.record["job_type"] == task
    assert run.record["tags"] == ["wrnn", task, "corrected"] and run.record["display_name"] == f"wrnn_{task}_s0"
    assert run.record["run_id"] == known_id(folder) and run.exit_code == 0
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(config, dict) and config["model"]["core"]["ring_size"] in (5, 7)
    assert {key: run.config[key] for key in config} == config
    assert run.config["start"] == "shift" and run.config["cell"].startswith("wrnn shift lr 0.00")


@pytest.mark.parametrize("task", TINY)
def test_an_offline_run_is_whole(runs: dict[str, tuple[Path, OnDisk]], task: str) -> None:
    folder, run = runs[task]
    for key, (steps, values) in read_metrics(folder / "metrics.csv").items():
        assert curve(run.history, key) == dict(zip([step - 1 for step in steps], values, strict=True))
    results = json.loads((folder / "results.json").read_text())
    assert {key: run.summary[key] for key in results} == pytest.approx(results)
    for name in ("learning_curve", "state_over_time"):
        (row,) = (row for row in run.history if f"{name}._type" in row)
        (picture,) = row[f"{name}.filenames"]
        assert (parts(folder)[0] / "files" / picture).read_bytes() == (folder / f"{name}.png").read_bytes()


def curve(history: list[dict[str, Any]], key: str) -> dict[int, float]:
    """Values by step; a step may be there twice, with one value."""
    found: dict[int, float] = {}
    for row in history:
        if key in row:
            assert found.setdefault(row[STEP], row[key]) == row[key]
    return found


def test_a_cell_is_all_but_the_seed(compose_config: Compose) -> None:
    def cell(*choices: str) -> Any:
        return facts(compose_config(*TINY_COPY, *choices))["cell"]

    assert cell() == cell("seed=3") == cell("logger=wandb", "paths.runs_dir=elsewhere")
    others = [("optimizer.lr=0.1",), ("trainer.max_steps=16",), ("task.datamodule.eval_seed=1",), ("model=irnn",)]
    assert len({cell(), *(cell(*choices) for choices in others[:3])}) == 4
    starts = [facts(compose_config("task=copy", f"init={init}"))["start"] for init in ("identity", "pytorch", "paper")]
    assert starts == ["identity", "pytorch", "shift"]


def test_the_newest_id_of_a_folder_is_taken_up(tmp_path: Path) -> None:
    assert known_id(tmp_path) is None
    for name, id in (("run-20260102_000000-new-1", "new"), ("offline-run-20260101_000000-old", "old")):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / f"run-{id}.wandb").touch()
    (tmp_path / "wandb/latest-run").symlink_to("offline-run-20260101_000000-old")
    assert known_id(tmp_path) == "new"


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Have SIGTERM come during that training step."""
    real = SequenceModule.training_step

    def training_step(self: SequenceModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, batch_idx)

    patch.setattr(SequenceModule, "training_step", training_step)


def stop_and_resume(compose_config: Compose, folder: Path) -> None:
    choices = (*TINY_COPY, "logger=wandb", f"paths.run_dir={folder}")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(7, patch)
        with pytest.raises(Interrupted):
            train(compose_config(*choices))
    train(compose_config(*choices, "ckpt_path=last"))


def assert_joined(server: Server, folder: Path) -> None:
    """One finished run with every step, and with the values of metrics.csv."""
    (run,) = server.runs.values()
    assert run.state == "finished" and run.id == known_id(folder)
    for key, (steps, values) in read_metrics(folder / "metrics.csv").items():
        assert curve(run.history, key) == pytest.approx(dict(zip([step - 1 for step in steps], values, strict=True)))
    assert list(curve(run.history, "train/loss")) == list(range(15))
    assert [row["_step"] for row in run.history] == list(range(len(run.history)))
    assert list(curve(run.history, "test/loss")) == [15]


def test_parts_that_were_written_offline_become_one_run(
    set_up: Callable[..., None], compose_config: Compose, tmp_path: Path
) -> None:
    set_up(WANDB_MODE="offline")
    stop_and_resume(compose_config, tmp_path / "run")
    written = [read_back(part) for part in parts(tmp_path / "run")]
    assert [part.exit_code for part in written] == [1, 0] and len({part.record["run_id"] for part in written}) == 1
    with Server() as server:
        set_up(WANDB_BASE_URL=server.url, WANDB_API_KEY="0" * 40)
        command = [sys.executable, "-m", "wandb", "sync", *map(str, parts(tmp_path / "run"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert_joined(server, tmp_path / "run")
        (run,) = server.runs.values()
        assert len(run.history) == sum(len(part.history) for part in written)


def test_a_resumed_run_goes_on_online(server: Server, compose_config: Compose, tmp_path: Path) -> None:
    stop_and_resume(compose_config, tmp_path / "run")
    assert_joined(server, tmp_path / "run")


def test_a_server_that_goes_away_costs_nothing_and_is_not_waited_for(
    set_up: Callable[..., None], compose_config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = tmp_path / "run", MetricsCSV.log_metrics
    with Server() as server:

        def go_away(self: MetricsCSV, metrics: dict[str, float], step: int) -> None:
            log(self, metrics, step)
            if step == 5:
                server.close()

        set_up(WANDB_BASE_URL=server.url, WANDB_API_KEY="0" * 40)
        with monkeypatch.context() as patched:
            patched.setattr(MetricsCSV, "log_metrics", go_away)
            choices = (*TINY_COPY, "logger=wandb", "logger.wandb.finish_timeout=2", f"paths.run_dir={folder}")
            assert train(compose_config(*choices))["steps"] == 15
    with Server() as server:
        set_up(WANDB_BASE_URL=server.url, WANDB_API_KEY="0" * 40)
        (written,) = folder.glob("wandb/run-*")
        command = [sys.executable, "-m", "wandb", "sync", "--include-online", str(written)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert_joined(server, folder)


def test_an_online_run_arrives_whole_and_a_diverged_one_as_failed(
    server: Server, compose_config: Compose, tmp_path: Path
) -> None:
    choices = (*TINY_COPY, "logger=wandb", "group=mine")
    with pytest.raises(DivergedError):
        train(compose_config(*choices, *DIVERGES, f"paths.run_dir={tmp_path}/a"))
    train(compose_config(*choices, f"paths.run_dir={tmp_path}/b"))
    bad, good = (server.runs[str(known_id(tmp_path / name))] for name in "ab")
    assert bad.state == "failed" and good.state == "finished"
    assert good.fields["groupName"] == "mine" and good.fields["jobType"] == "copy"
    assert good.fields["tags"] == ["wrnn", "copy", "corrected"] and good.fields["displayName"] == "wrnn_copy_s0"
    assert good.config["model"]["value"]["core"]["ring_size"] == 7 and bad.config["optimizer"]["value"]["lr"] == 1e30
    assert good.summary["parameters_total"] == 318 and "best_val/cross_entropy" in good.summary
    assert {name.split("_")[0] for name in good.files if "media" in name} == {
        "media/images/learning", "media/images/state"
    }  # fmt: skip


@pytest.mark.slow
def test_the_runs_of_a_sweep_are_told_apart(set_up: Callable[..., None], tmp_path: Path) -> None:
    set_up(WANDB_MODE="offline")
    words = [sys.executable, str(ROOT / "src/train.py"), "-m", *TINY_COPY, "logger=wandb", "seed=1,2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {folder.name[:12]: read_back(*parts(folder)) for folder in tmp_path.glob("runs/multirun/wrnn_*")}
    assert found.keys() == {"wrnn_copy_s1", "wrnn_copy_s2"}
    assert {run.record["run_group"] for run in found.values()} == {"multirun"}
    assert {name: run.record["display_name"] for name, run in found.items()} == {name: name for name in found}
    assert len({run.config["cell"] for run in found.values()}) == 1


@pytest.fixture
def write_pages(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`write_pages(...)`: what `dashboard` writes for those tasks, by file name; skipped without the extra."""
    pytest.importorskip("wandb_workspaces")
    from wrnn.dashboard import dashboard

    def write(*tasks: str, group: str | None = None) -> dict[str, Any]:
        schema.register()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            dashboard("wrnn", ENTITY, group, tasks, str(tmp_path / "pages"))
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "pages").glob("*.json")}

    return write


def panels(node: Any) -> Iterator[dict[str, Any]]:
    """All panels of a page or a part of one."""
    if isinstance(node, dict) and "viewType" in node:
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from panels(child)


def assert_found(key: str, run: OnDisk) -> None:
    """`key` as W&B addresses a number of the summary, or a value of the config: `.value` follows the first part."""
    section, _, name = key.partition(":")
    if section == "summary":
        assert isinstance(run.summary[name], int | float)
    elif section == "config":
        first, value, *rest = name.split(".")
        found = run.config[first]
        for part in rest:
            found = found[part]
        assert value == "value" and not isinstance(found, dict)
    else:
        assert section == "run" and name in ("state", "displayName")


def assert_panels_find_their_keys(page: Any, run: OnDisk) -> set[str]:
    kinds = set()
    for panel in panels(page):
        kind, config = panel["viewType"], panel["config"]
        kinds.add(kind)
        if "groupBy" in config:
            group = config["groupBy"]
            assert_found(f"run:{group}" if group == "state" else f"config:{group}", run)
        if kind == "Run History Line Plot":
            assert {config["xAxis"], *config["metrics"]} <= run.keys()
        elif kind in ("Bar Chart", "Scalar Chart"):
            assert_found(f"summary:{config['metrics'][0]}", run)
        elif kind == "Parallel Coordinates Plot":
            for column in config["columns"]:
                assert_found(column["accessor"], run)
        elif kind == "Media Browser":
            assert {f"{key}._type" for key in config["mediaKeys"]} <= run.keys()
        else:
            assert kind == "Run Comparer"
    return kinds


def test_every_panel_finds_its_keys_in_a_run(
    runs: dict[str, tuple[Path, OnDisk]], write_pages: Callable[..., dict[str, Any]]
) -> None:
    pages = write_pages("copy", "psmnist", group="mine")
    blocks = [block for block in pages["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    grids = {block["metadata"]["runSets"][0]["name"]: block for block in blocks}
    assert grids.keys() == {"copy", "psmnist", "failed"}
    assert_panels_find_their_keys(grids["failed"], runs["copy"][1])
    *_, states = grids["failed"]["metadata"]["runSets"][0]["filters"]["filters"]
    assert (states["key"]["name"], states["value"]) == ("state", ["failed", "crashed", "killed"])
    for task, (_, run) in runs.items():
        page = pages[f"workspace_{task}"]
        assert (
            len(assert_panels_find_their_keys(page, run)) == len(assert_panels_find_their_keys(grids[task], run)) == 6
        )
        best = "min" if task == "copy" else "max"
        for panel in (*panels(page), *panels(grids[task])):
            kind, config = panel["viewType"], panel["config"]
            if kind == "Run History Line Plot":
                assert config["groupAgg"] == "mean"
            elif kind == "Bar Chart" and config["groupBy"] != "state":
                assert config["groupAgg"] in (best, "mean") and f", {config['groupAgg']} by " in config["chartTitle"]
            elif kind == "Scalar Chart":
                assert config["groupAgg"] == best
        (shown,) = page["spec"]["section"]["runSets"]
        assert [order["ascending"] for order in shown["sort"]["keys"]] == [best == "min"]
        for column in shown["runFeed"]["columnOrder"]:
            assert_found(column, run)
        for key in (*shown["grouping"], *(order["key"] for order in shown["sort"]["keys"])):
            assert_found(f"{key['section']}:{key['name']}", run)
        for filters in (shown["filters"], grids[task]["metadata"]["runSets"][0]["filters"]):
            chosen = {(rule["key"]["section"], rule["key"]["name"], rule["value"]) for rule in filters["filters"]}
            assert chosen == {("run", "jobType", run.record["job_type"]), ("run", "group", "mine")}


def test_every_task_has_pages(write_pages: Callable[..., dict[str, Any]]) -> None:
    tasks = {path.stem for path in CONF.glob("task/*.yaml")}
    assert write_pages().keys() == {"report", *(f"workspace_{task}" for task in tasks)}


def test_pages_are_saved_as_they_are_written(
    server: Server, write_pages: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_pages("adding", group="mine")
    from wrnn.dashboard import dashboard

    server.runs["one"] = Run("one", "wrnn")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        dashboard("wrnn", None, "mine", "adding", None)
        with pytest.raises(ConfigError, match="project=other, entity=somebody: .*not found"):
            dashboard("other", None, None, "adding", None)
    assert f"{server.url}/{ENTITY}/wrnn" in capsys.readouterr().out
    for view, name in zip(server.views, ("workspace_adding", "report"), strict=False):
        assert (view["entityName"], view["projectName"]) == (ENTITY, "wrnn")
        saved = [panel["config"] for panel in panels(json.loads(view["spec"]))]
        assert saved == [panel["config"] for panel in panels(written[name])] and len(saved) > 10


def test_without_an_account_nothing_is_written(
    set_up: Callable[..., None], compose_config: Compose, tmp_path: Path
) -> None:
    set_up()
    with pytest.raises(ConfigError, match="logger=wandb: No API key configured.*WANDB_MODE=offline"):
        train(compose_config(*TINY_COPY, "logger=wandb", f"paths.run_dir={tmp_path}/run"))
    assert not list(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, str(ROOT / "src/dashboard.py"), "tasks=copy"], capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: No API key configured") and "output=FOLDER" in done.stderr


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wrnn.dashboard", raising=False)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match=r"wandb_workspaces is not installed; .* pip install -e '\.\[dashboard\]'"):
        import wrnn.dashboard  # noqa: F401
