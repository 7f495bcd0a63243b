"""The C allocator's setting: whether large buffers go back to the system after every call."""

import ctypes

MMAP_MAX, TRIM_THRESHOLD, ARENA_MAX = -4, -1, -8  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next call; returns whether there is a glibc to ask.

    By default every buffer above a threshold is mapped and unmapped by each call, and the page
    faults of that cost more than routing does. Process-wide; to be called before arrays are made.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 1 << 30), (ARENA_MAX, 1))
    accepted = [mallopt(name, value) for name, value in settings]  # each of them is to be set
    return all(accepted)
