"""Several processes of one run, each with devices of its own; the first one has the last word.

All processes compute the same steps, each on its devices' parts of every array. Only the first
prints and writes metrics. If one ends, the others end too, soon and with a line that says so:
nobody can go on without it, and a run goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np

from vmoe.errors import RunError, UserError
from vmoe.rendezvous import gather, greet, parse_address

PATIENCE = 60.0
"""Seconds in which all processes must have started."""
SILENCE = 20
"""A process that is not heard of for so many seconds ends the run."""
LOST = (
    "another process of this run is gone; nothing is lost but the steps since the last checkpoint; "
    "fix: see what that process said, and give all processes their commands again: the run goes on "
    "from there"
)
AUTO = "auto"

_on_abort: list[object] = []


def join(coordinator: str, num_processes: str, process_id: str) -> None:
    """Makes this process one of a run; to be called before anything asks for devices.

    Args:
      coordinator: HOST:PORT of process 0, where all of them meet.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      UserError: for values that cannot be, or if the processes do not meet within PATIENCE.
    """
    address = parse_address(coordinator)
    count, this = _number("num_processes", num_processes), _number("process_id", process_id)
    if count < 1:
        raise UserError("--num_processes=0 is no number of processes; fix: 1 or more")
    if this >= count:
        raise UserError(
            f"--process_id={this} is none of {count} processes; fix: 0 to {count - 1}, each once"
        )
    if this == 0:
        gather(address, count, PATIENCE)
    else:
        greet(address, count, this, PATIENCE)
    _initialize(coordinator_address=coordinator, num_processes=count, process_id=this)


def join_detected() -> None:
    """`join` where JAX itself finds out who is there: TPU pods, Slurm, Open MPI, Kubernetes.

    Raises:
      UserError: if this is none of these.
    """
    try:
        _initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--coordinator={AUTO}: JAX finds no cluster here ({' '.join(str(error).split())}); "
            "fix: --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from None


def is_first() -> bool:
    """Whether this is the process that prints and writes; always, where there is only one."""
    return jax.process_index() == 0


def meet(what: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)


def first_signal(number: int | None) -> int | None:
    """A signal that any process was sent, None for none; all processes ask together."""
    from jax.experimental.multihost_utils import process_allgather

    return int(np.max(process_allgather(np.asarray(number or 0, np.int32)))) or None


def first_says(number: int) -> int:
    """The number that the first process has; all processes ask together."""
    if jax.process_count() == 1:
        return number
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return int(broadcast_one_to_all(np.asarray(number, np.int32)))


def lost_another(error: Exception) -> bool:
    """Whether this is how JAX says that another process does not answer."""
    signs = ("Gloo", "coordination service", "UNAVAILABLE")
    return jax.process_count() > 1 and any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails in this block ends the process at once, so that the others notice.

    Leaving in the usual way, JAX would wait for the others, who wait for this one.
    """
    try:
        yield
    except (UserError, RunError) as error:
        if jax.process_count() == 1:
            raise
        _leave(str(error), 2 if isinstance(error, UserError) else 1)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if lost_another(error):
            _leave(LOST, 1)
        traceback.print_exc()
        _leave(f"{type(error).__name__}: {error}", 1)


def _initialize(**given: str | int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Signals are the training loop's: it saves and stops.
    jax.config.update("jax_enable_preemption_service", False)
    _speak_on_abort()
    jax.distributed.initialize(  # type: ignore[arg-type]
        **given, initialization_timeout=int(PATIENCE), heartbeat_timeout_seconds=SILENCE,
        shutdown_timeout_seconds=SILENCE,
    )  # fmt: skip


def _speak_on_abort() -> None:
    """JAX aborts this process when its coordinator is lost or another is silent: say what that is.

    Python's own handlers run between its instructions, so never once abort() was called. This one
    is called by it, in the thread of JAX's that polls for errors.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave(LOST, 1))
    install = ctypes.CDLL(None).signal
    install.argtypes, install.restype = [ctypes.c_int, type(handler)], ctypes.c_void_p
    install(signal.SIGABRT, handler)
    _on_abort.append(handler)  # ctypes frees what nobody holds


def _leave(message: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(f"vmoe: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os._exit(code)


def _number(flag: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"--{flag}={text} is no number; fix: for example --{flag}=1")
    return int(text)
