"""`hydra/sweeper=grid`: every combination of the axes, what is done already left out."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from wrnn.config import first_line
from wrnn.errors import ConfigError
from wrnn.sweeps import controller
from wrnn.sweeps.plan import PlannedRun, plan_all, set_aside_damaged


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, which goes on where it was stopped.

    Args:
        params: axes, `key: a,b,c`; what the command line says of a key wins.
        params_of: more axes for some models, `model: {key: a,b,c}`.
        max_batch_size: as Hydra's.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
        params_of: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        super().__init__(max_batch_size, dict(params or {}))
        self.params_of = params_of or {}

    def sweep(self, arguments: list[str]) -> None:
        """Launch what is to do. Raises: ConfigError, SweepIncomplete."""
        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        sweep_dir = Path(self.config.hydra.sweep.dir)
        combinations = self.combinations(arguments)
        queued = "slurm" in self.config.hydra.launcher._target_.lower()
        with controller.in_charge(sweep_dir, stops_runs=not queued):
            OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
            runs = plan_all(self.hydra_context.config_loader, self.config, combinations, sweep_dir)
            for line in itertools.chain.from_iterable(set_aside_damaged(run.folder) for run in runs):
                print(line, flush=True)
            todo = controller.announce(sweep_dir, runs, self.config.retry, side_by_side(self.config.hydra.launcher))
            controller.enter(self.config.paths.ledger_dir, runs)
            with controller.concluded(sweep_dir, lambda: runs):
                queue = [run for run in todo if queued and controller.in_slurm(run.folder)]
                for start, batch in self._batches([run for run in todo if run not in queue]):
                    self._launch(start, batch, queued)
                controller.wait_for_requeued(queue)

    def _launch(self, start: int, batch: Sequence[PlannedRun], queued: bool) -> None:
        assert self.launcher is not None
        try:
            self.launcher.launch([run.overrides for run in batch], initial_job_idx=start)
        except RuntimeError as error:  # submitit's, for a job that left no result: its run says how it stands
            if not queued:
                raise
            print(f"warning: {first_line(error)}", flush=True)
        if queued:
            controller.wait_for_requeued(batch)

    def combinations(self, arguments: Sequence[str]) -> list[list[str]]:
        """The overrides of every run, in the order of the axes. Raises: ConfigError where an axis has no values."""
        parsed = self._parse([f"{key}={values}" for key, values in self.params.items()])
        given = self._parse(arguments)
        said = {override.get_key_element() for override in given}
        base = self._product([*parsed, *given])
        if not self.params_of:
            return base
        found = []
        for overrides in base:
            model = self._model(overrides)
            extra = self._parse([f"{key}={values}" for key, values in self.params_of.get(model, {}).items()])
            extra = [override for override in extra if override.get_key_element() not in said]
            found += [[*overrides, *more] for more in self._product(extra)]
        return found

    def _batches(self, runs: Sequence[PlannedRun]) -> Iterator[tuple[int, Sequence[PlannedRun]]]:
        size = self.max_batch_size or max(len(runs), 1)
        for start in range(0, len(runs), size):
            yield start, runs[start : start + size]

    def _parse(self, arguments: Sequence[str]) -> list[Any]:
        assert self.hydra_context is not None
        return OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(list(arguments))

    def _product(self, overrides: Sequence[Any]) -> list[list[str]]:
        for override in overrides:
            if override.is_sweep_override() and override.is_discrete_sweep() and not list(override.sweep_iterator()):
                raise ConfigError(f"{override.input_line}: an axis without values")
        return self.split_arguments(list(overrides), None)[0]

    def _model(self, overrides: Sequence[str]) -> str:
        assert self.config is not None and self.hydra_context is not None
        loaded = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        return str(loaded.hydra.runtime.choices.model)


def side_by_side(launcher: Any) -> int:
    """How many jobs a launcher runs side by side, as its config says; 1 where it does not."""
    import joblib  # late: Hydra imports this file at every start

    jobs = launcher.get("n_jobs", launcher.get("array_parallelism", 1))
    if int(jobs) == 0:
        raise ConfigError("hydra.launcher.n_jobs=0: must not be 0; -1 is one a core")
    return int(joblib.effective_n_jobs(int(jobs)))
