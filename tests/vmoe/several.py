"""Several processes of one `vmoe train` on this machine, for the tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 400.0
"""Seconds for what takes some ten on a machine that does nothing else."""


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


def environment(devices: int) -> dict[str, str]:
    """Host devices, and a compiler in a hurry."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def start(workdir: Path, count: int, devices: int, flags: Sequence[str]) -> list[subprocess.Popen]:
    """`count` processes with `devices` each, training in one workdir; their output is in files."""
    port, processes = free_port(), []
    for this in range(count):
        command = [
            sys.executable, "-m", "vmoe.cli", "train", "--config=tests/vmoe/sharded.py",
            f"--workdir={workdir}", f"--coordinator=localhost:{port}",
            f"--num_processes={count}", f"--process_id={this}", *flags,
        ]  # fmt: skip
        with (workdir.parent / f"out{this}").open("w") as out, errors(workdir, this).open("w") as e:
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=environment(devices), stdout=out, stderr=e)
            )
    return processes


def errors(workdir: Path, process: int) -> Path:
    """Where the errors of a process are."""
    return workdir.parent / f"err{process}"


def wait_until(there: Callable[[], object], processes: Sequence[subprocess.Popen]) -> None:
    """Waits for something to be there, while none of the processes has ended."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline, "it never came"
        assert all(p.poll() is None for p in processes), "a process ended before"
        time.sleep(0.05)


def end(processes: Sequence[subprocess.Popen]) -> None:
    """Leaves none of them behind, whatever happened."""
    for process in processes:
        process.kill()
        process.wait()
