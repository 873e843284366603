"""The process of one run of a sweep, `python -m wrnn.sweeps.child FOLDER`; it ends as a single run does."""

import argparse
import os
import signal
from pathlib import Path

from wrnn import cli, runs
from wrnn.files import folder_lock, read_json
from wrnn.sweeps import devices


def main() -> None:
    """Wait for the folder and for a GPU, then train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="run folder")
    parser.add_argument("--gpus", default="", help="those to choose from, as CUDA_VISIBLE_DEVICES names them")
    parser.add_argument("--jobs-per-gpu", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="what the config was composed of; for the record")
    options = parser.parse_args()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # SLURM tells all processes of preemption; ours hears it from its parent
    with cli.endings(), folder_lock(options.folder):  # waits for a survivor of a sweep that was killed
        if read_json(options.folder / runs.RESULTS) is not None:
            return
        cfg = runs.load_config(options.folder)
        if options.gpus:
            os.environ[devices.VISIBLE] = devices.lease(options.gpus.split(","), options.jobs_per_gpu)
            print(f"GPU {os.environ[devices.VISIBLE]}", flush=True)
        from wrnn.training import train

        train(cfg)


if __name__ == "__main__":
    main()
