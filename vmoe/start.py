"""A run's first state from a checkpoint: fine-tuning, and upcycling a dense model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from vmoe.config import TrainConfig
from vmoe.errors import UserError
from vmoe.init_config import InitFromConfig, for_model
from vmoe.initialize.layouts import in_our_names
from vmoe.initialize.moments import moments
from vmoe.initialize.rules import initialised
from vmoe.optim import make_optimizer, named
from vmoe.state import TrainState
from vmoe.weights import files
from vmoe.weights.leaf import Leaves, flat

OPTIMIZER = "opt_state/"


def start_from(config: TrainConfig, state: TrainState) -> tuple[TrainState, str]:
    """The state with the weights of config.init_from's checkpoint, and what was done in a line.

    Args:
      config: the run's.
      state: as it was drawn; what the checkpoint does not give stays.

    Raises:
      UserError: if there is no such checkpoint, or a rule leaves something unmatched.
    """
    init = for_model(config.init_from, config.model.moe)
    checkpoint = files.read(init.path)
    try:
        given = weights_from(init, checkpoint.leaves, state.params)
        params = _replaced(state.params, given)
        opt_state = make_optimizer(config.optim, config.steps).init(params)
        if init.moments:
            opt_state = _with_moments(init, checkpoint.leaves, params, opt_state)
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint.path}: {error}") from None
    drawn = sorted(flat(state.params).keys() - given.keys())
    line = f"starts from {checkpoint.path} ({checkpoint.format}): {len(given)} arrays"
    if drawn:
        line += f"; drawn: {', '.join(drawn)}"
    return state._replace(params=params, opt_state=opt_state), line


def weights_from(init: InitFromConfig, leaves: Leaves, params: Any) -> dict[str, Any]:
    """The weights by path that a checkpoint of any layout gives to a tree of drawn ones."""
    source = in_our_names(files.weights(leaves))
    if init.upcycle and (sparse := [path for path in source if "/Moe/" in path]):
        raise UserError(
            f"it is sparse already: it has {sparse[0]}; fix: a dense checkpoint to upcycle, or "
            "init_from.upcycle=False to start from it as it is"
        )
    return dict(initialised(init.rules, init.fresh, source, flat(params)))


def _with_moments(init: InitFromConfig, leaves: Leaves, params: Any, opt_state: Any) -> Any:
    source = files.part(leaves, OPTIMIZER)
    if not source:
        raise UserError("it has no optimiser's state; fix: init_from.moments=False")
    weights = files.weights(leaves)
    given = moments(init.rules, init.fresh, source, weights, flat(opt_state), flat(params))
    return _replaced(opt_state, given)


def _replaced(tree: Any, given: Mapping[str, Any]) -> Any:
    """The tree with the leaves of these paths replaced, each where the old one was."""
    return jax.tree.map(
        lambda leaf, path: jax.device_put(given[path], leaf.sharding) if path in given else leaf,
        tree,
        named(tree),
    )
