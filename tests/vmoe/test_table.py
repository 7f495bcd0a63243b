"""Tables line up."""

from vmoe.table import table


def test_columns():
    shown = table(("name", "n"), [("a", "100"), ("longer", "7")])
    assert shown == "name      n\na       100\nlonger    7\n"
