"""Lines for the user about how a recurrence is computed."""

from functools import cache

from lightning.pytorch.utilities import rank_zero_only


@cache
@rank_zero_only
def say_once(line: str) -> None:
    """Print a line, on the first process only, and never twice."""
    print(line, flush=True)
