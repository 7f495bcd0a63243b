"""A ring of two devices by hand: whose part is where, and that the way back is the inverse."""

import numpy as np

from moegen.ir.interpret import interpret
from moegen.ir.parse import parse
from moegen.ir.verify import verify

# Groups 0 and 1 are of data device 0, of devices 0 and 1 of the ring; 2 and 3 of data device 1.
RING = 'axes=("m",), devices=2, outer=2'
TEXT = f"""
moe @around dims(G=4, E=2, E1of2=1, G1of2=2) mesh(data=2, m=2) (%x: f32[E, G@data@m]) {{
  %out: f32[E1of2, G@data@m] = ring_part(%x, {RING}, over="E", along="G", by=1)
  %arrived: f32[E@m, G1of2@data] = ring_permute(%out, {RING}, by=1, join="G", split="E")
  %own: f32[E1of2, G@data@m] = ring_part(%x, {RING}, over="E", along="G", by=0)
  %stayed: f32[E@m, G1of2@data] = ring_permute(%own, {RING}, by=0, join="G", split="E")
  %whole: f32[E@m, G@data] = ring_join(%stayed, %arrived, {RING}, over="G", along="E", by=(0, 1))
  %again: f32[E@m, G1of2@data] = ring_part(%whole, {RING}, over="G", along="E", by=1)
  %back: f32[E1of2, G@data@m] = ring_permute(%again, {RING}, by=1, join="E", split="G")
  %x_again: f32[E, G@data@m] = ring_join(%back, %own, {RING}, over="E", along="G", by=(1, 0))
  return out=%out, arrived=%arrived, stayed=%stayed, whole=%whole, x_again=%x_again
}}
"""


def test_parts_go_to_the_next_device_and_come_back():
    x = np.array([[0.0, 1.0, 2.0, 3.0], [10.0, 11.0, 12.0, 13.0]], np.float32)
    out, _ = interpret(verify(parse(TEXT)), x)
    np.testing.assert_array_equal(out["out"], [[10, 1, 12, 3]])  # for the expert of the other
    np.testing.assert_array_equal(out["arrived"], [[1, 3], [10, 12]])
    np.testing.assert_array_equal(out["stayed"], [[0, 2], [11, 13]])
    np.testing.assert_array_equal(out["whole"], x)
    np.testing.assert_array_equal(out["x_again"], x)
