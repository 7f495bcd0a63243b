"""The process that compiles: results come one by one, and a job that it dies of is one of them."""

import json
import os
import sys
from pathlib import Path

from moegen.tune.compiler import Job, outcomes


def main():
    """Stands for a compiler: says what it was told, and aborts at a job that asks for it."""
    (told,) = sys.argv[1:]
    for name, case, arguments in json.loads(sys.stdin.read()):
        if case == "abort":
            print("F0101 file.cc:1] Check failed: this one", file=sys.stderr, flush=True)
            os._exit(3)
        print("a line of the compiler's own", flush=True)
        print(json.dumps({"name": name, "told": told, **arguments}), flush=True)


def test_an_abort_is_a_result_and_the_rest_is_still_done():
    jobs = [Job("a", "do", {"n": 1}), Job("b", "abort"), Job("c", "do"), Job("d", "abort")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    assert list(outcomes(__name__, ["x"], jobs, environment)) == [
        {"name": "a", "told": "x", "n": 1},
        {"name": "b", "error": "the compiler aborted: Check failed: this one"},
        {"name": "c", "told": "x"},
        {"name": "d", "error": "the compiler aborted: Check failed: this one"},
    ]


if __name__ == "__main__":
    main()
