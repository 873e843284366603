"""Pages in W&B that compare runs, made from code: a workspace for each task, and a report over all of them.

Which metrics a task has is asked of its objective, so that a new task needs no line here. Runs that failed are never
filtered out. What a panel shows of a run are its history (`val/accuracy`), its summary (`test/accuracy`,
`parameters_total`) and its config (`model.name`; `start` and `cell` are made in `wrnn.wandb_logger`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from wrnn.callbacks.figures import LEARNING_CURVE, STATE_OVER_TIME
from wrnn.config import first_line
from wrnn.errors import ConfigError
from wrnn.files import write_atomically, writing

try:
    import wandb
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
except ModuleNotFoundError as missing:
    name = str(missing.name).split(".")[0]
    raise ConfigError(
        f"{name} is not installed; the extra `dashboard` has it: pip install -e '.[dashboard]'"
    ) from missing

STEP = "trainer/global_step"
FAILED = ("failed", "crashed", "killed")
_LENGTHS = ("delay", "sequence_length")  # how far a task reaches back; each has one at most
_MOST_RUNS = 100  # W&B draws ten lines a panel unless told


@dataclass(frozen=True)
class TaskFacts:
    """What the pages must know of a task.

    Attributes:
        metrics: without their split; the monitored one first, then the loss.
        mode: `max` or `min`, of the monitored one.
        length: the key of the number of steps it reaches back, if it has one.
    """

    name: str
    metrics: tuple[str, ...]
    mode: str
    length: str | None


def dashboard(
    project: str, entity: str | None, group: str | None, tasks: Sequence[str] | str | None, output: str | None
) -> None:
    """Save the pages in W&B and print their addresses, or write what would be saved to JSON files in `output`.

    Call it where Hydra is initialized with this project's config; `tasks` is one or more of its tasks, None is all.

    Raises: ConfigError without a network, an account or such a project, or for an `output` that cannot be written.
    """
    loader = GlobalHydra.instance().config_loader()
    names = [tasks] if isinstance(tasks, str) else tasks or sorted(loader.get_group_options("task"))
    for name in names:
        if name not in loader.get_group_options("task"):
            raise ConfigError(f"tasks={name}: must be of {', '.join(sorted(loader.get_group_options('task')))}")
    known = [facts(name) for name in names]
    if output is not None:
        pages = {f"workspace_{task.name}": workspace(project, entity or "", group, task) for task in known}
        pages["report"] = report(project, entity or "", group, known, own_project=True)
        for name, page in pages.items():
            path = Path(output) / f"{name}.json"
            with writing(f"output={output}"):
                write_atomically(path, spec(page))
            print(path)
        return
    try:
        entity = entity or wandb.Api().default_entity or ""
    except wandb.errors.Error as error:
        raise ConfigError(f"{first_line(error)} output=FOLDER needs no account and no network") from error
    saved = [workspace(project, entity, group, task) for task in known]
    for page in (*saved, report(project, entity, group, known)):
        try:
            print(page.save().url, flush=True)
        except Exception as error:  # a missing project, a refused query and a lost network have no type in common
            raise ConfigError(f"project={project}, entity={entity}: {first_line(error)}") from error


def facts(task: str) -> TaskFacts:
    """Ask a task's config and objective, as `dashboard`. Raises: Hydra's error where there is no such task."""
    cfg = compose("config", [f"task={task}"])
    monitored = cfg.task.monitor.metric.split("/")[1]
    names = [monitored, "loss", *instantiate(cfg.task.objective, output_size=2).metrics()]
    length = next((key for key in _LENGTHS if key in cfg.task.datamodule), None)
    return TaskFacts(task, tuple(dict.fromkeys(names)), cfg.task.monitor.mode, length)


def workspace(project: str, entity: str, group: str | None, task: TaskFacts) -> ws.Workspace:
    """The runs of one task side by side; its run list is grouped by model and can be regrouped by hand."""
    sections = [
        ws.Section(name="Comparison", panels=comparison(task), is_open=True, pinned=True),
        ws.Section(name="Validation", panels=[curve(f"val/{name}", task) for name in task.metrics], is_open=True),
        ws.Section(name="Training", panels=training(task)),
        ws.Section(name="Test", panels=[bars(f"test/{name}", "model.name", "mean") for name in task.metrics]),
        ws.Section(name="Runs", panels=[*endings(), wr.RunComparer(diff_only="split")]),
    ]
    columns = ["run:state", "config:model.value.name", "config:cell.value", "config:seed.value"]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=": ".join([task.name, *([group] if group else [])]),
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=_MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=_filters(task.name, group),
            groupby=[ws.Config("model.name")],
            order=[ws.Ordering(ws.Summary(f"test/{task.metrics[0]}"), ascending=task.mode == "min")],
            pinned_columns=[*columns, f"summary:test/{task.metrics[0]}"],
        ),
    )


def report(
    project: str, entity: str, group: str | None, tasks: Sequence[TaskFacts], own_project: bool = False
) -> wr.Report:
    """The comparison of every task on one page, which can be shared, and a list of the runs that failed.

    `own_project`: leave it to W&B that the runs are those of the report's project; otherwise it is asked for the
    project's number, which takes an account.
    """
    where = {} if own_project else {"entity": entity, "project": project}
    of = f"group {group}" if group else f"project {project}"
    blocks: list[Any] = [
        wr.P(
            f"Runs of {of}. A line is a mean, its band spans the runs behind it. A cell is all that changes a result "
            "but the seed. The test was taken once, on the weights that validation chose. Runs that failed are shown "
            "as far as they came."
        )
    ]
    for task in tasks:
        runs = wr.Runset(**where, name=task.name, filters=_filters(task.name, group))
        panels = [*comparison(task), *training(task), wr.RunComparer(diff_only="split")]
        blocks += [wr.H1(task.name), wr.PanelGrid(runsets=[runs], panels=panels)]
    failed = wr.Runset(**where, name="failed", filters=_filters(None, group, FAILED))
    panels = [*endings(), wr.RunComparer(diff_only="split")]
    blocks += [wr.H1("Runs that failed"), wr.PanelGrid(runsets=[failed], panels=panels)]
    return wr.Report(project=project, entity=entity, title=f"Comparison: {of}"[:128], blocks=blocks, width="fluid")


def spec(page: Any) -> str:
    """What `page.save()` would send, as JSON. The package has no public way to it."""
    return page._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"


def _filters(task: str | None, group: str | None, states: Sequence[str] = ()) -> Any:
    chosen = [ws.Metric("JobType") == task] if task else []
    chosen += [ws.Metric("Group") == group] if group else []
    return ws.And(*chosen, *([ws.Metric("State").isin(list(states))] if states else []))


def comparison(task: TaskFacts) -> list[Any]:
    """What a reader wants first: curves over seeds, the best of each model and cell, the grid, the waves."""
    metric = task.metrics[0]
    best = "max" if task.mode == "max" else "min"
    config = ["model.name", *([f"task.datamodule.{task.length}"] if task.length else []), "start"]
    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(key)) for key in config]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.Config("optimizer.lr"), log=True))
    columns += [wr.ParallelCoordinatesPlotColumn(wr.Config(key)) for key in ("trainer.gradient_clip_val", "seed")]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric("parameters_total"), "parameters", log=True))
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(f"test/{metric}"), log=best == "min"))
    return [
        curve(f"val/{metric}", task),
        curve(f"val/{metric}", task, "cell", "stddev"),
        bars(f"test/{metric}", "model.name", best),
        bars(f"test/{metric}", "cell", best),
        bars(f"test/{metric}", "cell", "mean"),
        wr.ScalarChart(title=f"best test/{metric}", metric=f"test/{metric}", groupby_aggfunc=best),
        wr.ParallelCoordinatesPlot(title=f"the grid and test/{metric}", columns=columns),
        wr.MediaBrowser(title="waves", media_keys=[STATE_OVER_TIME], num_columns=3),
        wr.MediaBrowser(title="learning curves", media_keys=[LEARNING_CURVE], num_columns=3),
    ]


def training(task: TaskFacts) -> list[Any]:
    """The metrics of training batches, and what drives them."""
    return [curve(f"train/{name}", task) for name in (*task.metrics, "gradient_norm", "learning_rate")]


def endings() -> list[Any]:
    """How far runs came, by how they ended."""
    return [
        wr.BarPlot(
            title="steps, by state", metrics=[STEP], groupby="State", groupby_aggfunc="mean", groupby_rangefunc="minmax"
        )
    ]


def curve(metric: str, task: TaskFacts, key: str = "model.name", band: str = "minmax") -> wr.LinePlot:
    """A metric over training steps: the mean of the runs that share a config value, and their band."""
    name = metric.split("/")[1]
    falls = name in ("loss", "gradient_norm", "learning_rate") or (name == task.metrics[0] and task.mode == "min")
    return wr.LinePlot(
        title=f"{metric} by {key}", x=STEP, y=[metric], log_y=falls, groupby=wr.Config(key), groupby_aggfunc="mean",
        groupby_rangefunc=band, max_runs_to_show=_MOST_RUNS,
    )  # fmt: skip


def bars(metric: str, key: str, choice: str) -> wr.BarPlot:
    """A final metric: `choice` (mean, min or max) of the runs that share a config value; a mean has a spread."""
    return wr.BarPlot(
        title=f"{metric}, {choice} by {key}", metrics=[metric], groupby=wr.Config(key),
        groupby_aggfunc=choice, groupby_rangefunc="stddev" if choice == "mean" else "none",
        max_runs_to_show=_MOST_RUNS, max_bars_to_show=_MOST_RUNS,
    )  # fmt: skip
