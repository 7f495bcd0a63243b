"""`vmoe report RUN`: the run on one self-contained HTML page."""

from __future__ import annotations

import sys
from pathlib import Path

from vmoe.commands.choices import number
from vmoe.commands.given import Given, quiet
from vmoe.errors import UserError
from vmoe.use.files import write_bytes
from vmoe.use.report import report
from vmoe.use.trained import load_trained


def run(given: Given) -> int:
    """Writes --out, or report.html into the run's folder."""
    workdir = Path(given.arguments[0])
    out = Path(given.flags.get("out", str(workdir / "report.html")))
    rounds = int(number("rounds", given.flags.get("rounds", "3")))
    if rounds < 1:
        raise UserError(f"--rounds={rounds} times nothing; fix: 1 or more")
    quiet()
    trained = load_trained(workdir, given.overrides)
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: {out.parent} is no folder; fix: make it first")
    page = report(workdir, trained, rounds, lambda text: print(text, file=sys.stderr))
    write_bytes(out, page.encode())
    print(f"{out}: {len(page) / 1e3:.0f} kB, opens in any browser")
    return 0
