"""How far apart the cores are: what one pays to read memory that another has just written.

On a virtual machine the host moves cores, together under one last cache or apart, and says nothing.
What two cores work on in turns, such as slices of weights within a loop, then takes three to four
times as long, and the same program up to 1.5 times, for seconds or for hours.
"""

import os
import statistics
import time

import numpy as np

BYTES, LINE = 1 << 18, 64
"""What is handed over, so much that it stays in the writer's own cache; and a cache line."""
ROUNDS = 15


def handover_ns() -> float | None:
    """Nanoseconds per cache line that the first core wrote and the last one reads.

    About 1.5 on Zen 4 where both share a last cache, and 3.5 where they do not. None where a thread
    cannot be moved to a core, or has one only.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    writer, reader = min(allowed), max(allowed)
    if writer == reader:
        return None
    values, seconds = np.zeros(BYTES // 8), []
    try:
        for _ in range(ROUNDS):
            os.sched_setaffinity(0, {writer})
            values += 1
            os.sched_setaffinity(0, {reader})
            start = time.perf_counter()
            values.max()
            seconds.append(time.perf_counter() - start)
    finally:
        os.sched_setaffinity(0, allowed)
    return statistics.median(seconds) / (BYTES / LINE) * 1e9
