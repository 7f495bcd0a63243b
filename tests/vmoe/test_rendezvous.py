"""Processes meet within their patience, or each of them says in one line why not."""

import socket
import threading
import time

import pytest

from tests.vmoe.several import free_port
from vmoe.errors import UserError
from vmoe.rendezvous import gather, greet, parse_address


def meeting(*calls):
    """What each of the calls said, all at the same time: an error's text, or None."""
    said = [None] * len(calls)

    def run(number, call):
        try:
            call()
        except UserError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=run, args=(n, c)) for n, c in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return said


@pytest.fixture
def at():
    return "localhost", free_port()


def test_all_come(at):
    calls = [lambda p=p: greet(at, 3, p, 20.0) for p in (2, 1)]
    assert meeting(*calls, lambda: gather(at, 3, 20.0)) == [None] * 3
    gather(at, 1, 20.0)  # and the port is free again


def test_some_do_not_come(at):
    first, second = meeting(lambda: gather(at, 4, 1.0), lambda: greet(at, 4, 2, 1.0))
    assert first == second
    assert first.startswith("of 4 processes, 1, 3 did not come within 1 s; fix: start them all")


def test_nobody_listens(at):
    (said,) = meeting(lambda: greet(at, 2, 1, 0.3))
    assert f"no process 0 at --coordinator=localhost:{at[1]} within 0.3 s" in said


def test_one_number_twice(at):
    calls = [lambda: greet(at, 3, 1, 20.0)] * 2
    said = meeting(lambda: gather(at, 3, 20.0), *calls)
    assert "two processes have --process_id=1; fix: each its own" in said[0]
    assert all(said)


def test_another_count(at):
    said = meeting(lambda: gather(at, 2, 20.0), lambda: greet(at, 3, 1, 20.0))
    assert "process 1 has --num_processes=3, process 0 has 2; fix: the same for all" in said[0]


def test_a_stranger_is_left_out(at):
    def stranger():
        time.sleep(0.3)
        with socket.create_connection(at, 20.0) as line:
            line.sendall(b"GET / HTTP/1.1\r\n")

    def guest():
        time.sleep(0.6)
        greet(at, 2, 1, 20.0)

    said = meeting(lambda: gather(at, 2, 20.0), stranger, guest)
    assert said == [None] * 3


def test_the_port_is_taken(at):
    wanted = rf"cannot listen on port {at[1]}: .*fix: another free"
    with socket.create_server(("", at[1])), pytest.raises(UserError, match=wanted):
        gather(at, 2, 1.0)


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:http", "host:0", "host:65536"])
def test_no_address(text):
    with pytest.raises(UserError, match=r"is no HOST:PORT; fix"):
        parse_address(text)


def test_addresses():
    assert parse_address("localhost:7890") == ("localhost", 7890)
    assert parse_address("[::1]:7890") == ("::1", 7890)
