"""Soft MoE: every slot reads a mix of all tokens, so nothing is chosen and nothing is dropped."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import moegen as mg

EPSILON = 1e-6


@mg.router
def soft(
    x: mg.floating["S D"],
    mu: mg.f32["D E C"],
    scale: mg.f32[""].init(jax.nn.initializers.ones),
    key: mg.Key = None,
    noise: mg.f32["S E C"] = None,
    mask: mg.bool_["S"] = None,
    *,
    noise_std: float = 0.0,
    similarities: bool = False,
):
    """Slots take softmax-weighted means of the tokens; tokens take such means of the slots.

    Logits are scale times the cosine of token and slot vector, with normal noise of standard
    deviation noise_std (not divided by E) added in training. Dispatch weights are their softmax
    over the tokens, combine weights their softmax over all slots of all experts.

    Args:
      x: tokens; the router computes in f32.
      mu: a vector per slot, C slots per expert; LeCun normal at first. `mg.compute_capacity(S,
        E, factor, rounding="round", multiple_of=1)` is the C of a capacity factor.
      scale: of the logits; 1 at first.
      key: for the noise; None: no noise.
      noise: a recorded standard normal draw that replaces the key's.
      mask: False for padding; such tokens reach no slot and get output 0. The report counts them.
      noise_std: standard deviation of the noise.
      similarities: whether to report how alike weights are, which costs S * S * E * C.

    Returns:
      The route, and per group {combine,dispatch}_weights_{min,max}_mean: the least and the
      largest weight that a token gives, or a slot takes, in the mean. With similarities,
      {combine,dispatch}_weights_similarity_{min,max,mean}: the cosines of two tokens' combine
      weights, and of two slots' dispatch weights.

    Source: arXiv:2308.00951, section 2 and appendix E (normalised router).
    """
    tokens = unit(mg.cast(x, "f32"), over="D")
    logits = mg.dot(tokens, unit(mu, over="D") * scale, over="D")
    if noise_std and (key is not None or noise is not None):
        draw = mg.normal(key, like=logits) if noise is None else noise
        logits = logits + draw * noise_std
    combine = mg.softmax(logits, over="E C")
    if mask is not None:
        logits, combine = mg.where(mask, logits, -1e30), mg.where(mask, combine, 0.0)
    dispatch = mg.softmax(logits, over="S")
    return mg.soft_route(dispatch, combine), _report(dispatch, combine, similarities)


def unit(x, over):
    """X divided by its length over a dim; a length below 1e-3 counts as about 1e-3."""
    return x * mg.rsqrt(mg.sum(mg.square(x), over=over) + EPSILON)


def _report(dispatch, combine, similarities):
    dispatch, combine = mg.stop_gradient(dispatch), mg.stop_gradient(combine)
    report = {
        "combine_weights_min_mean": mg.mean(mg.min(combine, over="E C"), over="S"),
        "combine_weights_max_mean": mg.mean(mg.max(combine, over="E C"), over="S"),
        "dispatch_weights_min_mean": mg.mean(mg.min(dispatch, over="S"), over="E C"),
        "dispatch_weights_max_mean": mg.mean(mg.max(dispatch, over="S"), over="E C"),
    }
    if similarities:
        by_slot = mg.merge(dispatch, "E C", "P")
        report |= _similarity("combine_weights", mg.merge(combine, "E C", "P"), "S", "P")
        report |= _similarity("dispatch_weights", by_slot, "P", "S")
    return report


def _similarity(name, x, each, over):
    """Least, largest and mean cosine between two different vectors of x[each, over]."""
    count = mg.size(each)
    if count < 2:
        return {}
    x = x * mg.rsqrt(mg.sum(mg.square(x), over=over))
    other = f"{each}_other"
    cosine = mg.dot(x, mg.split(x, each, **{other: count}), over=over)
    same = mg.one_hot(mg.iota(each), other) > 0.0
    pairs = (each, other)
    return {
        f"{name}_similarity_min": mg.min(mg.where(same, 1.0, cosine), over=pairs),
        f"{name}_similarity_max": mg.max(mg.where(same, -1.0, cosine), over=pairs),
        f"{name}_similarity_mean": mg.sum(mg.where(same, 0.0, cosine), over=pairs)
        / float(count * (count - 1)),
    }


def mu_similarity(mu: jax.Array) -> dict[str, jax.Array]:
    """Least, largest and mean cosine between two different slot vectors.

    Args:
      mu: f32[D, E, C], with at least two slots.
    """
    flat = mu.reshape(len(mu), -1)
    flat = flat * jax.lax.rsqrt(jnp.sum(jnp.square(flat), axis=0) + EPSILON)
    upper = (flat.T @ flat)[jnp.triu_indices(flat.shape[1], 1)]
    return {
        "mu_similarity_min": upper.min(),
        "mu_similarity_max": upper.max(),
        "mu_similarity_mean": upper.mean(),
    }
