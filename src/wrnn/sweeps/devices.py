"""Which GPUs there are on this machine, and who has them."""

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

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


def lease(gpus: Sequence[str], count: int = 1, jobs_per_gpu: int = 1, poll_seconds: float = 0.5) -> list[str]:
    """Wait for `count` of these GPUs and have them to oneself until this process ends, however it ends.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them.
        count: GPUs wanted; at least 1 and at most all of them.
        jobs_per_gpu: how many processes may share one.
        poll_seconds: between two looks.

    All processes of a user on a machine take part, whichever sweep they belong to. Several GPUs are taken all at once
    or not at all, so that no two jobs wait for each other.
    """
    if not 1 <= count <= len(gpus):
        raise ValueError(f"trainer.devices={count}: must be from 1 to {len(gpus)}, the GPUs that are visible")
    folder = Path(tempfile.gettempdir()) / f"wrnn-{os.getuid()}-gpus"
    folder.mkdir(exist_ok=True)
    while True:
        with FileLock(folder / "lease.lock"):
            taken: list[tuple[str, FileLock]] = []
            for slot in range(jobs_per_gpu):  # an empty GPU before a second job on another
                for gpu in gpus:
                    lock = FileLock(folder / f"{gpu.replace('/', '_')}.{slot}.lock", thread_local=False)
                    if len(taken) < count and gpu not in (name for name, _ in taken):
                        try:
                            lock.acquire(timeout=0)
                            taken.append((gpu, lock))
                        except Timeout:
                            continue
            if len(taken) == count:
                _HELD.extend(lock for _, lock in taken)
                return [name for name, _ in taken]
            for _, lock in taken:
                lock.release()
        time.sleep(poll_seconds)


_HELD: list[FileLock] = []  # a lock that nothing refers to would be released
