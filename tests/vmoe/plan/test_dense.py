"""Operations by formula: those that JAX traces, for every kind of head."""

import jax
import pytest

from vmoe import model
from vmoe.model_config import ModelConfig
from vmoe.plan import dense
from vmoe.use.macs import static_macs

IMAGE = (8, 12, 3)


@pytest.mark.parametrize("head", ["token", "gap", "map"])
@pytest.mark.parametrize("representation", [None, 24])
def test_the_forward_is_counted_as_jax_traces_it(head, representation):
    config = ModelConfig(
        patch_size=4, width=16, depth=3, mlp_dim=48, num_heads=4, num_classes=7, head=head,
        representation_size=representation,
    )  # fmt: skip
    key = jax.random.key(0)
    params = jax.eval_shape(lambda: model.init(config, key, IMAGE))
    images = jax.ShapeDtypeStruct((1, *IMAGE), "float32")
    traced = jax.make_jaxpr(lambda p, x: model.apply(config, p, x))(params, images)
    assert sum(dense.forward_flops(config, IMAGE)) == 2 * static_macs(traced.jaxpr)
