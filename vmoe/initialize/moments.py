"""An optimiser's moments from a checkpoint: they follow the weights through the same rules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vmoe.errors import UserError
from vmoe.init_config import Rule
from vmoe.initialize.rules import initialised
from vmoe.weights.leaf import Leaves


def moments(
    rules: Sequence[Rule],
    fresh: Sequence[str],
    source: Leaves,
    source_weights: Iterable[str],
    target: Mapping[str, np.ndarray],
    target_weights: Iterable[str],
) -> dict[str, np.ndarray]:
    """The moments that the checkpoint gives, and their step counts, by path in the optimiser.

    A moment's path ends in its weight's: "2/mu/head/kernel". All that does not, such as the count
    of the learning rate's schedule, stays as it is, unless it stands beside moments: "2/count".

    Args:
      rules, fresh: as for the weights; moments of fresh weights start anew, too.
      source: the checkpoint's optimiser.
      source_weights: paths of the checkpoint's weights.
      target: the run's optimiser.
      target_weights: paths of the run's weights.

    Raises:
      UserError: if the two optimisers do not keep the same moments, or a rule does not fit one.
    """
    theirs, ours = _by_kind(source, set(source_weights)), _by_kind(target, set(target_weights))
    if theirs.keys() != ours.keys() or not ours:
        kinds = [", ".join(sorted(kinds)) or "none" for kinds in (theirs, ours)]
        raise UserError(
            f"the checkpoint's optimiser keeps the moments {kinds[0]}, the run's {kinds[1]}; "
            "fix: the same config.optim, or init_from.moments=False"
        )
    found: dict[str, np.ndarray] = {}
    for kind, paths in ours.items():
        leaves = {weight: source[path] for weight, path in theirs[kind].items()}
        group = {weight: target[path] for weight, path in paths.items()}
        made = initialised(rules, fresh, leaves, group)
        found |= {paths[weight]: array for weight, array in made.items()}
    beside = {_beside(path, weight) for paths in ours.values() for weight, path in paths.items()}
    return found | _counts(source, target, beside)


def _counts(
    source: Leaves, target: Mapping[str, np.ndarray], beside: Iterable[str]
) -> dict[str, np.ndarray]:
    """The step counts of these paths; experts that are a part of their own have one each."""
    counts = {_without_part(path): source[path] for path in source if path.endswith("/count")}
    return {
        path: np.broadcast_to(counts[_without_part(path)].read(), target[path].shape)
        for path in beside
        if path in target and _without_part(path) in counts
    }


def _beside(moment: str, weight: str) -> str:
    """Returns "2/count" for the moment "2/mu/head/kernel" of the weight "head/kernel"."""
    kind = moment.removesuffix(f"/{weight}")
    return f"{kind.rpartition('/')[0]}/count"


def _by_kind(arrays: Iterable[str], weights: set[str]) -> dict[str, dict[str, str]]:
    """{"2/mu": {"head/kernel": path}}: what ends in a weight's path, by what comes before."""
    kinds: dict[str, dict[str, str]] = {}
    for path in arrays:
        names = path.split("/")
        for i in range(1, len(names)):
            weight = "/".join(names[i:])
            if weight in weights:
                kinds.setdefault(_without_part("/".join(names[:i])), {})[weight] = path
                break
    return kinds


def _without_part(path: str) -> str:
    """The path without the part of the weights that it is kept for: adafactor parts experts off."""
    return re.sub(r"(^|/)inner_states/\w+/", r"\1", path)
