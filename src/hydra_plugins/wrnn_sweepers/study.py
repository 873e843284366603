"""A search by Optuna that goes on where it was killed; there only with the extra `optuna`."""

import copy
import logging
from pathlib import Path
from typing import Any

try:
    from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
except ImportError:
    pass
else:
    from omegaconf import DictConfig, OmegaConf, open_dict, read_write

    from wrnn.config import fingerprint, first_line
    from wrnn.errors import ConfigError
    from wrnn.sweeps import controller
    from wrnn.sweeps.plan import OUTCOME, PlannedRun, check_start

    class StudySweeper(OptunaSweeper):
        """Hydra's Optuna sweeper, whose `n_trials` counts over all starts, and which takes up trials that were lost.

        A trial that was under way when a search was killed is asked for again, with its settings; its run, whose
        folder they name, then goes on from its checkpoint.
        """

        def sweep(self, arguments: list[str]) -> None:
            """Run the trials that are left. Raises: ConfigError, SweepIncomplete."""
            config = self.sweeper.config
            assert config is not None
            sweep_dir = Path(config.hydra.sweep.dir)
            if not self.sweeper.params and not any("interval(" in word or "choice(" in word for word in arguments):
                raise ConfigError("hydra.sweeper.params: nothing to search; give ranges, key: interval(low, high)")
            queued = "slurm" in config.hydra.launcher._target_.lower()
            with controller.in_charge(sweep_dir, stops_runs=not queued):
                check_start(config)
                _check_direction(self.sweeper, config)
                OmegaConf.save(config, sweep_dir / "multirun.yaml")
                controller.enter(config.paths.ledger_dir, _runs(sweep_dir))
                with controller.concluded(sweep_dir, lambda: _runs(sweep_dir)):
                    self._take_up(config)
                    if self.sweeper.n_trials > 0:
                        self._run_trials(arguments)

        def _run_trials(self, arguments: list[str]) -> None:
            try:
                super().sweep(arguments)
            except ConfigError:
                raise
            except ValueError as error:  # Optuna's word for a search space that it cannot take
                hint = "a search with other ranges needs another hydra.sweep.dir"
                raise ConfigError(f"hydra.sweeper.params: {first_line(error)} {hint}") from error

        def _take_up(self, config: DictConfig) -> None:
            """Ask again for lost trials, leave out those that are done."""
            import optuna  # late: Hydra imports this file at every start

            optuna.logging.set_verbosity(logging.WARNING)
            sweeper = self.sweeper
            try:
                study = optuna.create_study(
                    study_name=sweeper.study_name, storage=sweeper.storage, directions=sweeper._get_directions(),
                    load_if_exists=True,
                )  # fmt: skip
            except Exception as error:  # the storage's own, of whatever kind it is
                raise ConfigError(
                    f"hydra.sweeper.storage={sweeper.storage}: cannot be read ({first_line(error)}); move it away"
                ) from error
            searched = _searched(config)
            if study.user_attrs.get("searched", searched) != searched:
                raise ConfigError(f"hydra.sweep.dir={config.hydra.sweep.dir}: holds another search; name another")
            study.set_user_attr("searched", searched)
            lost = list(study.user_attrs.get("lost", []))
            for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                study.enqueue_trial(trial.params)
                lost.append(trial.number)
                study.set_user_attr("lost", lost)
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            done = sum(trial.state.is_finished() and trial.number not in lost for trial in study.trials)
            again = f", {len(lost)} lost and asked for again" if lost else ""
            print(f"study {study.study_name}: {sweeper.n_trials} trials, {done} done{again}", flush=True)
            sweeper.n_trials = max(0, sweeper.n_trials - done)

    def _check_direction(sweeper: Any, config: DictConfig) -> None:
        """A search must want what the task wants."""
        mode = config.task.monitor.mode
        wanted = {"min": "minimize", "max": "maximize"}[mode]
        if (found := [str(getattr(one, "name", one)).lower() for one in sweeper._get_directions()]) != [wanted]:
            raise ConfigError(f"hydra.sweeper.direction={found[0]}: must be {wanted}, as task.monitor.mode={mode}")

    def _searched(config: DictConfig) -> str:
        """What is searched with: all that the trials have in common."""
        common = copy.deepcopy(config)
        with read_write(common), open_dict(common):
            del common["hydra"]
        return fingerprint(common)

    def _runs(sweep_dir: Path) -> list[PlannedRun]:
        """Every run that a trial has started."""
        return [PlannedRun((), path.parent, None) for path in sorted(sweep_dir.glob(f"*/{OUTCOME}"))]
