"""The ways a run ends that are not a programming error, and the exit code of each."""


class ConfigError(ValueError):
    """Something the user can mend: printed as one line, exit code 2. Names the key, the value and the legal range."""

    exit_code = 2


class DivergedError(RuntimeError):
    """The loss or its gradient is not finite any more: one line, exit code 3. The last good checkpoint is kept."""

    exit_code = 3


class OutOfMemory(RuntimeError):
    """The run wanted more memory than there is: one line, exit code 4. The last checkpoint is kept."""

    exit_code = 4


class SweepIncomplete(RuntimeError):
    """A sweep has ended with runs that failed or did not end: exit code 5. What finished is kept."""

    exit_code = 5


class ReplayDiffers(RuntimeError):
    """A run that was made again did not come out the same: one line, exit code 6. Both are kept."""

    exit_code = 6


class Interrupted(BaseException):
    """A signal stopped the run after it was saved. Exit code 128 + signal: 130 for Ctrl-C, 143 for SIGTERM.

    Derived from BaseException, as KeyboardInterrupt is, so that no handler for ordinary errors swallows it.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
