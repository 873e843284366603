"""What the commands share: errors as one line, and exit codes.

0 done, 1 a bug (with its traceback), 2 something the user can mend, 3 diverged, 4 out of memory, 5 a sweep in which not
every run finished, 130 Ctrl-C, 143 SIGTERM.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from wrnn.errors import ConfigError, DivergedError, Interrupted, OutOfMemory, SweepIncomplete


def run(main: Callable[[], None]) -> None:
    """Call a Hydra main: what it raises becomes one line on stderr and an exit code; a bug keeps its traceback."""
    full = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # have Hydra raise instead of printing several lines
    with endings():
        try:
            main()
        except (HydraException, OmegaConfBaseException) as error:
            if full:
                raise
            _leave(_flat(error), ConfigError.exit_code)


@contextmanager
def endings() -> Iterator[None]:
    """Turn the expected ways to end into one line on stderr and an exit code, SIGTERM among them."""
    signal.signal(signal.SIGTERM, _stop)  # before and after training; `ResumePoint` takes over in between
    try:
        yield
    except Interrupted as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # clusters send it more than once
        _leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        _leave("stopped by SIGINT", 130)
    except (ConfigError, DivergedError, OutOfMemory, SweepIncomplete) as error:
        _leave(str(error), error.exit_code)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number, f"stopped by {signal.Signals(number).name}")


def _flat(error: BaseException) -> str:
    """Hydra's message and its cause on one line, without the search path."""
    parts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    lines = [line.strip() for part in parts for line in part.splitlines()]
    unwanted = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "Config search path",
        "provider=",
        "Set the env",
        "See ",
    )
    return " ".join(line for line in lines if line and not line.startswith(unwanted))


def _leave(message: str, code: int) -> None:
    print(message if code > 128 else f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
