"""Real runs as processes of their own, started in a fraction of a second, and hurt at a chosen moment.

A child is forked from a server that has imported torch, Lightning and this package and done nothing else. It then is
what `python src/train.py ...` is: the same script, with its own folder, output, signals and exit code.
"""

import ctypes
import errno
import itertools
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PRELOADED = [
    "torch",
    "lightning.pytorch",
    "torchvision.datasets",
    "hydra",
    "wandb",
    "wrnn.cli",
    "wrnn.training",
    "torture.processes",
]


@dataclass(frozen=True)
class Hurt:
    """What happens to a process at one of its own file operations: to open for writing, rename, remove, make a folder.

    Attributes:
        operation: which one, counted from 1 among those below `folder`.
        how: `kill` sends SIGKILL before the operation; `full` makes it fail as on a full disk; `denied` makes it and
            all later ones fail as in a folder that may not be written to; `clock` has the time of day jump by
            `seconds`; `count` does nothing but writes a byte for each operation into `<folder>.count`.
        folder: what is counted.
        seconds: of the jump.
    """

    operation: int
    how: str
    folder: str
    seconds: int = 0


_WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def _install(hurt: Hurt) -> None:
    count = 0
    counted = os.open(f"{hurt.folder}.count", os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if hurt.how == "count" else -1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            writes = any(letter in (mode or "") for letter in "wax+") or bool(
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            )
            if not writes:
                return
        elif event in _WRITES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | os.PathLike) or not os.path.abspath(path).startswith(hurt.folder):
            return
        count += 1
        if hurt.how == "count":
            os.write(counted, b".")
        if count == hurt.operation and hurt.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if count == hurt.operation and hurt.how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if count >= hurt.operation and hurt.how == "denied":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        if count == hurt.operation and hurt.how == "clock":
            before = time.time()
            ctypes.CDLL(None).shift_clock(ctypes.c_long(hurt.seconds))
            assert abs(time.time() - before - hurt.seconds) < 60, "the clock did not jump"

    sys.addaudithook(hook)


def _child(arguments: list[str], folder: str, log: str, hurt: Hurt | None, memory: int | None) -> None:
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    if hurt is not None:
        _install(hurt)
    if memory is not None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    script, *sys.argv[1:] = arguments
    sys.argv[0] = str(ROOT / script)
    sys.path.insert(0, str(ROOT / "src"))
    runpy.run_path(sys.argv[0], run_name="__main__")


_NUMBERS = itertools.count()


class Run:
    """A run that has been started.

    Args:
        server: what it is forked from.
        arguments: a script of this project and its words.
        folder: where it works; its output goes to a file beside it.
        hurt: what happens to it.
        memory: bytes of address space that it may take beyond those with which it starts.
    """

    def __init__(
        self, server: "Server", arguments: list[str], folder: Path, hurt: Hurt | None = None, memory: int | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.{next(_NUMBERS)}.log"
        self.process: BaseProcess = server.context.Process(
            target=_child, args=(arguments, str(folder), str(self.log), hurt, memory)
        )
        self.process.start()

    def wait(self, seconds: float = 300) -> int:
        """The exit code; negative for a signal. A run that takes longer is killed, which is a fault of its own."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return 999
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


_CLOCK = """
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long shift;
void shift_clock(long seconds) { shift += seconds; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += shift;
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


class Server:
    """The process that children are forked from. Their time of day can be shifted, the machine's stays.

    Args:
        scratch: a folder for the library that does so.
    """

    def __init__(self, scratch: Path) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ["WANDB_MODE"] = "offline"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        clock = scratch / "clock.so"
        command = ["gcc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(clock)]
        subprocess.run(command, input=_CLOCK, text=True, check=True)
        os.environ["LD_PRELOAD"] = str(clock)
        forkserver.ensure_running()  # else at the first run, with whatever stands in the environment then
        del os.environ["LD_PRELOAD"]
