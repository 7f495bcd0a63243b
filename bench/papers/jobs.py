"""Work that may be interrupted: jobs one after the other, with the time that is left."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

Report = Callable[[str, float], None]
"""Takes what to show of the job under way, and the share of it that is done."""


def silent(text: str, share: float) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class Job:
    """A piece of work that leaves its result in the store when it is done.

    Attributes:
      name: for the person watching; the same job has the same name.
      cost: relative to other jobs', in images times passes.
      do: the work.
    """

    name: str
    cost: float
    do: Callable[[Report], None]


class Watch:
    """Says which job is under way, and how long the others will take at this speed."""

    def __init__(self, jobs: Sequence[Job], out: TextIO):
        self._total, self._out = sum(job.cost for job in jobs), out
        self._start, self._done = time.perf_counter(), 0.0
        self._current: Job | None = None
        self._label = ""

    def begin(self, job: Job, label: str) -> None:
        """The job starts."""
        self._current, self._label = job, label
        print(f"{label} {job.name}", file=self._out, flush=True)

    def end(self) -> None:
        """The job is done."""
        assert self._current is not None
        self._done += self._current.cost
        self._current = None

    def show(self, text: str, share: float) -> None:
        """Where the job under way is; `share` of it is done."""
        done = self._done + (self._current.cost * share if self._current else 0.0)
        spent = time.perf_counter() - self._start
        left = spent * (self._total - done) / done if done else 0.0
        print(f"{self._label}   {text}  about {left / 60:.0f} min left", file=self._out, flush=True)


def run_all(jobs: Sequence[Job], out: TextIO = sys.stderr) -> bool:
    """Does the jobs in order; False if Ctrl-C ended it, with all that was done before kept."""
    watch = Watch(jobs, out)
    try:
        for number, job in enumerate(jobs, 1):
            watch.begin(job, f"[{number}/{len(jobs)}]")
            job.do(watch.show)
            watch.end()
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is done", file=out)
        return False
    return True
