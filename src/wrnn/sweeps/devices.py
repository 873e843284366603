"""Which GPUs there are on this machine, and who has them."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from wrnn.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: all, where it is not set."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(number) for number, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def checked_share(jobs_per_gpu: int) -> int:
    """How many jobs share a GPU. Raises: ConfigError below 1."""
    if jobs_per_gpu < 1:
        raise ConfigError(f"jobs_per_gpu={jobs_per_gpu}: must be at least 1")
    return jobs_per_gpu


def lease(gpus: Sequence[str], jobs_per_gpu: int = 1, poll_seconds: float = 0.5) -> str:
    """Wait for one of these GPUs and have it to oneself until this process ends, however it ends.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them.
        jobs_per_gpu: how many processes may share one.
        poll_seconds: between two looks.

    All processes of a user on a machine take part, whichever sweep they belong to.
    """
    folder = Path(tempfile.gettempdir()) / f"wrnn-{os.getuid()}-gpus"
    folder.mkdir(exist_ok=True)
    while True:
        for slot in range(checked_share(jobs_per_gpu)):  # an empty GPU before a second job on another
            for gpu in gpus:
                lock = FileLock(folder / f"{gpu.replace('/', '_')}.{slot}.lock", thread_local=False)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                _HELD.append(lock)
                return gpu
        time.sleep(poll_seconds)


_HELD: list[FileLock] = []  # a lock that nothing refers to would be released
