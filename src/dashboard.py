"""Build the W&B pages that compare runs: `python src/dashboard.py entity=NAME [group=SWEEP] [output=FOLDER]`."""

import hydra
from omegaconf import DictConfig

from wrnn import cli, schema

schema.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="dashboard")
def main(cfg: DictConfig) -> None:
    """Save a workspace for each task and one report, or write them to files."""
    with cli.endings():
        from wrnn.dashboard import dashboard  # late: it needs an extra

        dashboard(cfg.project, cfg.entity, cfg.group, cfg.tasks, cfg.output)


if __name__ == "__main__":
    cli.run(main)
