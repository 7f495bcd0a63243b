"""What classes are called, where their data says."""

from __future__ import annotations

from collections.abc import Sequence

from vmoe.errors import UserError


def checked_names(chosen: Sequence[str], own: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """The names that a config chose, or else those of the data itself; () if neither has any.

    Raises:
      UserError: if the chosen ones are not one for each class.
    """
    if chosen and len(chosen) != num_classes:
        raise UserError(
            f"data.class_names has {len(chosen)} names and the data {num_classes} classes; fix: "
            "one name for each, in the order of the labels"
        )
    return tuple(chosen or own)


def class_name(names: Sequence[str], label: int) -> str:
    """The name of a class, or "class 3"; a model may have more classes than its data has names."""
    return names[label] if label < len(names) else f"class {label}"
