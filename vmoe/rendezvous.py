"""Where the processes of a run find each other, before JAX does: every mistake is one line.

JAX's own coordination service aborts a process that meets nobody. So process 0 listens at the
coordinator's address first, hears from every other process which one it is, tells all what it
found, and leaves the address to JAX.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

from vmoe.errors import UserError

Address = tuple[str, int]
HEARING = 5.0
"""Seconds in which a caller must have said which process it is."""
LONGEST = 2000
"""Bytes that a line may have."""


def parse_address(text: str) -> Address:
    """HOST:PORT as a pair.

    Raises:
      UserError: if it is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"--coordinator={text} is no HOST:PORT; fix: for example --coordinator=localhost:7890"
        )
    return host.strip("[]"), int(port)


def gather(address: Address, count: int, patience: float) -> None:
    """Process 0: waits until the others have said who they are, then lets them go.

    Raises:
      UserError: if the port cannot be had, some do not come within `patience` seconds, or two say
        they are the same one; those that did come are told.
    """
    deadline = time.monotonic() + patience
    came: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(address[1], count))
        try:
            while len(came) < count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    guest = stack.enter_context(server.accept()[0])
                except TimeoutError:
                    raise UserError(_absent(came, count, patience)) from None
                if (said := _hear(guest, time.monotonic() + HEARING)) is not None:
                    _check(said, came, count)
                    came[said["process"]] = guest
        except UserError as error:
            for guest in came.values():
                _say(guest, {"error": str(error)})
            raise
        for guest in came.values():
            _say(guest, {"go": True})


def greet(address: Address, count: int, process: int, patience: float) -> None:
    """Any other process: tells process 0 that it is there, and waits for the others.

    Raises:
      UserError: if process 0 is not reached within `patience` seconds, or says what is wrong.
    """
    deadline = time.monotonic() + patience
    with _reach(address, deadline, patience) as line:
        _say(line, {"process": process, "of": count})
        said = _hear(line, deadline + patience)
    if said is None or "error" in said:
        raise UserError(
            (said or {}).get("error")
            or f"process 0 at {address[0]}:{address[1]} went away while the processes met; fix: "
            "see what it said, and start all of them again"
        )


def _listen(port: int, count: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, backlog=count,
            dualstack_ipv6=both,
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port}: {error.strerror}; fix: another free port in "
            "--coordinator, the same for all processes"
        ) from None


def _reach(address: Address, deadline: float, patience: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(address, timeout=patience)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"no process 0 at --coordinator={address[0]}:{address[1]} within "
                    f"{patience:g} s ({error.strerror or error}); fix: start --process_id=0 on "
                    "that host, with the same --coordinator"
                ) from None
            time.sleep(0.2)


def _absent(came: dict[int, socket.socket], count: int, patience: float) -> str:
    missing = ", ".join(str(p) for p in range(1, count) if p not in came)
    return (
        f"of {count} processes, {missing} did not come within {patience:g} s; fix: start them all, "
        "with one --coordinator, or a smaller --num_processes"
    )


def _check(said: dict[str, Any], came: dict[int, socket.socket], count: int) -> None:
    if said["of"] != count:
        raise UserError(
            f"process {said['process']} has --num_processes={said['of']}, process 0 has {count}; "
            "fix: the same for all"
        )
    if said["process"] in came:
        raise UserError(f"two processes have --process_id={said['process']}; fix: each its own")


def _say(line: socket.socket, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # it is gone: nobody to tell
        line.sendall(json.dumps(what).encode() + b"\n")


def _hear(line: socket.socket, deadline: float) -> dict[str, Any] | None:
    """The line that the other end says; None if that is nothing of ours."""
    line.settimeout(max(deadline - time.monotonic(), 0.01))
    try:
        with line.makefile("rb") as file:
            said = json.loads(file.readline(LONGEST))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None
