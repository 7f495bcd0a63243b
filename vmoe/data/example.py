"""tf.train.Example, read without TensorFlow: named lists of bytes, floats or whole numbers.

Source: the protocol buffers wire format and tensorflow/core/example/{example,feature}.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

Value = list[bytes] | list[float] | list[int]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3


def parse_example(message: bytes) -> dict[str, Value]:
    """The features of a serialised Example by name.

    Raises:
      ValueError: if the bytes are no such message.
    """
    features: dict[str, Value] = {}
    for _, content in _fields(message, only=1):
        for _, entry in _fields(content, only=1):
            parts = dict(_fields(entry))
            features[bytes(parts.get(1, b"")).decode()] = _feature(parts.get(2, b""))
    return features


def _feature(message: bytes) -> Value:
    for kind, content in _fields(message):
        values = [value for _, value in _fields(content, only=1)]
        if kind == BYTES_LIST:
            return [bytes(value) for value in values]
        if kind == FLOAT_LIST:
            return [number for value in values for (number,) in struct.iter_unpack("<f", value)]
        if kind == INT64_LIST:
            return [number for value in values for number in _int64s(value)]
    return []


def _int64s(value: int | bytes) -> Iterator[int]:
    """A number alone, or several packed into bytes; negative ones are stored as 2**64 more."""
    numbers, at = [value], 0
    if isinstance(value, bytes):
        numbers = []
        while at < len(value):
            number, at = _varint(value, at)
            numbers.append(number)
    for number in numbers:
        yield number - (1 << 64) if number >= 1 << 63 else number


def _fields(message: bytes, only: int | None = None) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field, or of those with one number."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = _varint(message, at)
        elif wire in (BYTES, FIXED32, FIXED64):
            size = {FIXED32: 4, FIXED64: 8}.get(wire)
            if size is None:
                size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("the message is cut short")
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"the message has a field of the unknown kind {wire}")
        if only is None or number == only:
            yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, seven bits to a byte, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("the message is cut short")
        byte, at = message[at], at + 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("the message has a number of more than 64 bits")
