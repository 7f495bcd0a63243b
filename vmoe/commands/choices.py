"""The flags that say how a trained model is used: --capacity, --bpr, --budget and the like."""

from __future__ import annotations

from collections.abc import Sequence

from vmoe.commands.given import Given
from vmoe.errors import UserError
from vmoe.inference import Choices


def choices_of(given: Given) -> Choices:
    """The choices of a command line; those without a flag are left as the model was trained.

    Raises:
      UserError: for a value that is no number.
    """
    flags = given.flags
    capacity = numbers("capacity", flags.get("capacity"), ())
    k = number("k", flags["k"]) if "k" in flags else None
    if k is not None and k != int(k):
        raise UserError(f"--k={flags['k']} is no whole number; fix: 1 or more")
    return Choices(
        k=None if k is None else int(k),
        capacity=(capacity if len(capacity) > 1 else capacity[0]) if capacity else None,
        batch_priority={"true": True, "false": False}.get(flags.get("bpr", "")),
        dropless=flags.get("dropless") == "true",
        budget=number("budget", flags["budget"]) if "budget" in flags else None,
        skip=number("skip", flags["skip"]) if "skip" in flags else None,
        independent=flags.get("independent") == "true",
    )


def number(flag: str, text: str) -> float:
    """The number that a flag's value is.

    Raises:
      UserError: if it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not -1e9 < value < 1e9:
        raise UserError(f"--{flag}={text} is no number; fix: for example --{flag}=1")
    return value


def numbers(flag: str, text: str | None, default: Sequence[float]) -> tuple[float, ...]:
    """The numbers of a value such as "2,1,0.5"; the default where the flag was not given.

    Raises:
      UserError: if one of them is none.
    """
    return tuple(default) if text is None else tuple(number(flag, one) for one in _listed(text))


def _listed(text: str) -> list[str]:
    return text.split(",") if text else []
