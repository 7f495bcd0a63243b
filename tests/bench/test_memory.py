"""bench/memory.py: less is kept than before, and no more than the bound allows."""

from bench import memory
from bench.__main__ import main


def test_quick_run_shows_what_is_kept(capsys):
    assert main(["memory", "--quick", "--experts=mlp"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["MB", "bound", "kept:", "all", "least"]
    assert [line.split()[0] for line in lines] == ["quick/slots/mlp", "quick/sorted/mlp"]
    for line in lines:
        bound, plain, least = map(float, line.split()[1:])
        assert least < bound < plain


def test_the_bound_counts_the_rows_of_the_format():
    case = memory.Case("quick", memory.QUICK, "sorted", "mlp", 1)
    assert memory.bound_bytes(case, {"N": 10}) == 2 * (64 * 32 + 2 * 10 * 64)


def test_a_topology_that_is_not_known_is_one_line(monkeypatch, capsys):
    def refuse(**asked):
        raise RuntimeError("no such topology")

    monkeypatch.setattr(memory.topologies, "get_topology_desc", refuse)
    assert main(["memory", "--quick", "--topology=v99:1x1"]) == 2
    assert "--topology=v99:1x1: no such topology; fix: install" in capsys.readouterr().err


def test_a_stack_has_layers(capsys):
    assert main(["memory", "--quick", "--layers=0"]) == 2
    assert "--layers=0" in capsys.readouterr().err
