"""An optimiser's moments from a checkpoint: they follow the weights through the same rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vmoe.errors import UserError
from vmoe.init_config import Rule
from vmoe.initialize.rules import initialised
from vmoe.weights.leaf import Leaf, Leaves


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
    for kind, group in ours.items():
        made = initialised(rules, fresh, theirs[kind], group)
        found |= {f"{kind}/{path}": array for path, array in made.items()}
    for path in {f"{kind.rpartition('/')[0]}/count" for kind in ours}:
        if path in source and path in target:
            found[path] = source[path].read()
    return found


def _by_kind(
    arrays: Mapping[str, Leaf] | Mapping[str, np.ndarray], weights: set[str]
) -> dict[str, dict[str, Leaf]]:
    """{"2/mu": {"head/kernel": ...}}: what ends in a weight's path, by what comes before."""
    kinds: dict[str, dict[str, Leaf]] = {}
    for path, array in arrays.items():
        names = path.split("/")
        for i in range(1, len(names)):
            if "/".join(names[i:]) in weights:
                kinds.setdefault("/".join(names[:i]), {})["/".join(names[i:])] = array
                break
    return kinds
