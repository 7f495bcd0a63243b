# ruff: noqa: E501
"""Rows of two devices on their way to their experts, by hand: numbered, swapped, grouped, back."""

import numpy as np
import pytest

from moegen.errors import VerifyError
from moegen.ir.interpret import interpret
from moegen.ir.parse import parse
from moegen.ir.verify import verify

# Device 0 has group 0, device 1 group 1; experts 0 and 1 live on device 0, expert 2 and 3 on 1.
TEXT = """
moe @sent dims(G=2, S=3, K=1, E=4, C=3, Parts=2, Sent=12, N=16, GroupParts=1, D=1) mesh(m=2) (
    %x: f32[G@m, S, D], %expert: i32[G@m, S, K], %position: i32[G@m, S, K]) {
  %slot: i32[G@m, S, K], %counts: i32[Parts@m, E] = pair_numbers(%expert, %position, devices=2, parts=2)
  %source: i32[Sent@m] = invert_slots(%slot, dims=("Sent",))
  %sent: f32[Sent@m, D] = take_tokens(%x, %source)
  %here: i32[Parts@m, E] = swap_parts(%counts, axes=("m",), devices=2)
  %take: i32[N@m], %back: i32[Sent@m], %sizes: i32[GroupParts, E@m] = regroup(%here, axes=("m",), block=2, devices=2)
  %arrived: f32[Sent@m, D] = swap_parts(%sent, axes=("m",), devices=2)
  %rows: f32[N@m, D] = take_rows(%arrived, %take)
  %returned: f32[Sent@m, D] = take_rows(%rows, %back)
  %home: f32[Sent@m, D] = swap_parts(%returned, axes=("m",), devices=2)
  %y: f32[G@m, S, D] = take_slots(%home, %slot)
  return slot=%slot, counts=%counts, here=%here, sizes=%sizes, sent=%sent, rows=%rows, y=%y
}
"""


def test_rows_go_to_their_experts_and_come_back():
    expert = np.array([[[3], [0], [3]], [[0], [1], [9]]], np.int32)  # the last one goes nowhere
    position = np.array([[[0], [0], [1]], [[0], [0], [0]]], np.int32)
    x = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3, 1)
    out, _ = interpret(verify(parse(TEXT)), x, expert, position)

    def same(name, want):
        np.testing.assert_array_equal(np.squeeze(out[name]), want)

    same("slot", [[3, 0, 4], [0, 1, 6]])  # three rows may go to each device
    same("counts", [[1, 0, 0, 2], [1, 1, 0, 0]])
    same("sent", [2, 0, 0, 1, 3, 0, 4, 5, 0, 0, 0, 0])
    same("here", [[1, 0, 1, 1], [0, 2, 0, 0]])  # from device 0, then from device 1
    same("sizes", [2, 2, 0, 2])
    same("rows", [2, 4, 5, 0, 0, 0, 0, 0, 1, 3, 0, 0, 0, 0, 0, 0])
    same("y", [[1, 2, 3], [4, 5, 0]])


def test_rows_on_their_way_are_numbered_by_expert():
    text = """
moe @numbers dims(G=1, S=3, K=1, E=2, C=2, Parts=1, Sent=3) (
    %expert: i32[G, S, K], %position: i32[G, S, K]) {
  %slot: i32[G, S, K], %counts: i32[Parts, E] = row_numbers(%expert, %position, block=1, dim="Sent", parts=1)
  return slot=%slot, counts=%counts
}
"""
    expert, position = np.array([[[1], [0], [0]]], np.int32), np.array([[[0], [0], [1]]], np.int32)
    out, _ = interpret(verify(parse(text)), expert, position)
    np.testing.assert_array_equal(out["slot"], [[[2], [0], [1]]])  # tokens 1 and 2, then token 0
    np.testing.assert_array_equal(out["counts"], [[2, 1]])
    with pytest.raises(VerifyError, match="G=1 has no 2 equal parts"):
        verify(parse(text.replace("parts=1)", "parts=2)")))
