"""Which GPUs there are on this machine, and who has them."""

import fcntl
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from wrnn.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: all, where it is not set.

    Raises: ConfigError where the driver does not answer.
    """
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except subprocess.TimeoutExpired as error:
        raise ConfigError("nvidia-smi: no answer in a minute; CUDA_VISIBLE_DEVICES=0,1 names the GPUs") from error
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

    All processes of a user on a machine take part, whichever sweep they belong to: a GPU that one has to itself is not
    shared with others, whatever these were told.
    """
    folder = Path(tempfile.gettempdir()) / f"wrnn-{os.getuid()}-gpus"
    folder.mkdir(exist_ok=True)
    shares = checked_share(jobs_per_gpu)
    while True:
        for slot in range(shares):  # an empty GPU before a second job on another
            for gpu in gpus:
                name = gpu.replace("/", "_")
                if _locked(folder / f"{name}.lock", fcntl.LOCK_SH if shares > 1 else fcntl.LOCK_EX):
                    if shares == 1 or _locked(folder / f"{name}.{slot}.lock", fcntl.LOCK_EX):
                        return gpu
                    os.close(_HELD.pop())
        time.sleep(poll_seconds)


def _locked(path: Path, how: int) -> bool:
    """Have the file locked, shared or alone, until this process ends; False where others are in the way."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return False
    _HELD.append(file)
    return True


_HELD: list[int] = []  # what closes them is the end of the process
