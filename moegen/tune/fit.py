"""`python -m moegen.tune.fit TABLES`: fits the kernel model's rates and judges them.

TABLES is the directory data/autotuning of an installed tokamax, or a table written by
--write-table. A third of the shapes is kept out of the fit; both parts are reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from moegen.errors import MoegenError
from moegen.tune.fit_rates import fit_all
from moegen.tune.judge import Fitted, judge, report
from moegen.tune.kernel_model import write_kernel
from moegen.tune.observations import (
    Observation,
    held_out,
    read_table,
    write_table,
    write_text,
)
from moegen.tune.tokamax import read_tokamax

SOURCE = """Times of grouped products, from the autotuning tables published with tokamax
(https://github.com/openxla/tokamax, release 0.0.17, Apache-2.0, Copyright DeepMind Technologies
Limited): bfloat16, no residuals, the best tile of each kernel, median of the repetitions."""
"""What the committed table and rates say of where they come from."""
_WRITE_TABLE = flags.DEFINE_string("write_table", None, "write the observations to this file")
_WRITE_RATES = flags.DEFINE_string("write_rates", None, "write the fitted rates to this file")


def main(argv: Sequence[str]) -> None:
    """Fits, prints the report, and writes what is asked for."""
    if len(argv) != 2:
        raise app.UsageError("name one directory of tables, or one table")
    try:
        found = read(Path(argv[1]))
        fitted = fit_all([o for o in found if not held_out(o.problem)])
        print(report(judge(found, fitted)))
        if _WRITE_TABLE.value:
            write_table(Path(_WRITE_TABLE.value), found, SOURCE)
        if _WRITE_RATES.value:
            write_text(Path(_WRITE_RATES.value), rates_text(fitted))
    except MoegenError as error:
        raise app.UsageError(str(error)) from None


def read(path: Path) -> list[Observation]:
    """Reads tokamax's directory, or a table of ours."""
    return read_tokamax(path) if path.is_dir() else read_table(path)


def rates_text(fitted: Fitted) -> str:
    """The contents of data/kernel_rates.json."""
    devices: dict[str, Any] = {
        device: {name: write_kernel(kernel) for name, kernel in kernels.items()}
        for device, kernels in fitted.items()
    }
    source = f"Fitted by python -m moegen.tune.fit. {' '.join(SOURCE.split())}"
    return json.dumps({"source": source, "devices": devices}, indent=1) + "\n"


if __name__ == "__main__":
    app.run(main)
