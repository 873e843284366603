"""Memory that a process has had once."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for what is allocated next, to the end of the process; whether it can.

    Left alone, glibc gives large blocks back at once, and each tensor of 32 MiB or more is mapped anew, page by page: a
    large part of a training step of S4D, LRU or minGRU on psMNIST. The price is a process that does not shrink.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, -1))
