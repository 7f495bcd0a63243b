"""TFRecord and ArrayRecord files: written by others, read by ours; each kind of damage."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from vmoe.config import DataConfig
from vmoe.data.example import parse_example
from vmoe.data.pipeline import evaluation_batches, load
from vmoe.data.records import TFRecordFiles, masked_crc
from vmoe.data.source import CorruptImage
from vmoe.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def example_class():
    """tf.train.Example as protobuf itself makes it, from its published definition."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name, parent=file.message_type, **fields):
        made = parent.add(name=name)
        for number, (field, (kind, repeated, of)) in enumerate(fields.items(), 1):
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            made.field.add(name=field, number=number, label=label, type=kind, type_name=of or None)
        return made

    message("BytesList", value=(kinds.TYPE_BYTES, True, ""))
    message("FloatList", value=(kinds.TYPE_FLOAT, True, ""))
    message("Int64List", value=(kinds.TYPE_INT64, True, ""))
    message(
        "Feature",
        bytes_list=(kinds.TYPE_MESSAGE, False, ".t.BytesList"),
        float_list=(kinds.TYPE_MESSAGE, False, ".t.FloatList"),
        int64_list=(kinds.TYPE_MESSAGE, False, ".t.Int64List"),
    )
    features = message("Features", feature=(kinds.TYPE_MESSAGE, True, ".t.Features.Entry"))
    entry = message(
        "Entry",
        features.nested_type,
        key=(kinds.TYPE_STRING, False, ""),
        value=(kinds.TYPE_MESSAGE, False, ".t.Feature"),
    )
    entry.options.map_entry = True
    message("Example", features=(kinds.TYPE_MESSAGE, False, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


@pytest.fixture(scope="module")
def records(example_class):
    made = []
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(png := io.BytesIO(), "png")
        example = example_class()
        feature = example.features.feature
        feature["image"].bytes_list.value.append(png.getvalue())
        feature["label"].int64_list.value.append(i % 4)
        feature["weights"].float_list.value.extend([0.5, -2.0])
        made.append(example.SerializeToString())
    return made


def write_tfrecord(path, records) -> None:
    from tensorboardX.record_writer import RecordWriter

    writer = RecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()


def write_array_record(path, records) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


@pytest.fixture(params=["tfrecord", "array_record"])
def folder(request, tmp_path, records):
    write = {"tfrecord": write_tfrecord, "array_record": write_array_record}[request.param]
    for name, part in (
        ("train", records[:3]), ("train", records[3:5]), ("test", records[5:])
    ):  # fmt: skip
        shard = len(list(tmp_path.glob(f"*{name}*")))
        write(tmp_path / f"x-{name}.{request.param}-{shard:05}-of-00002", part)
    return request.param, tmp_path


def config(kind, path, **changes) -> DataConfig:
    return DataConfig(name=kind, path=str(path), batch_size=2, max_shift=0, **changes)


def test_the_check_value_of_crc_32c():
    import google_crc32c

    assert google_crc32c.value(b"123456789") == 0xE3069283
    assert masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32


def test_examples_of_protobuf(example_class):
    example = example_class()
    feature = example.features.feature
    feature["many"].int64_list.value.extend([0, 1, -1, 300, 2**62, -(2**63)])
    feature["real"].float_list.value.extend([0.5, -2.0])
    feature["text"].bytes_list.value.extend([b"", b"two"])
    feature["none"].float_list.SetInParent()
    assert parse_example(example.SerializeToString()) == {
        "many": [0, 1, -1, 300, 2**62, -(2**63)],
        "real": [0.5, -2.0],
        "text": [b"", b"two"],
        "none": [],
    }


def test_numbers_that_are_not_packed():
    """As older writers store them: each number a field of its own."""
    int64s = b"\x08\x05\x08\x07"
    value = b"\x1a" + bytes([len(int64s)]) + int64s
    entry = b"\x0a\x01k\x12" + bytes([len(value)]) + value
    features = b"\x0a" + bytes([len(entry)]) + entry
    assert parse_example(b"\x0a" + bytes([len(features)]) + features) == {"k": [5, 7]}


def test_cut_and_mangled_examples_raise_nothing_but_value_errors(records):
    rng = np.random.default_rng(0)
    for trial in range(300):
        end = len(records[0]) if trial % 2 else rng.integers(1, len(records[0]))
        damaged = bytearray(records[0][:end])
        for _ in range(3):
            damaged[rng.integers(min(40, end))] = rng.integers(256)
        try:
            parse_example(bytes(damaged))
        except (ValueError, TypeError, struct.error):
            continue


def test_a_folder_of_shards(folder):
    kind, path = folder
    train, test = load(config(kind, path))
    assert (len(train), len(test), train.num_classes, train.shape) == (5, 2, 4, (6, 6, 3))
    (batch,) = evaluation_batches(train, 5)
    np.testing.assert_allclose(batch["images"], PIXELS[:5] / 127.5 - 1, atol=1e-6)
    assert batch["labels"].tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"test_split": "val"}, r"has no file \*val\*\..*record\*; fix: data.path is the folder"),
        ({"keys": ("image/encoded", "label")}, r"no feature 'image/encoded' of bytes, only image,"),
        ({"keys": ("image", "weights")}, r"no feature 'weights' of int"),
        ({"classes": 2}, r"has label 2, but there are 2 classes; fix: raise data.classes"),
    ],
)
def test_what_cannot_be_used(folder, changes, message):
    with pytest.raises(UserError, match=message):
        list(evaluation_batches(load(config(*folder, **changes))[0], 5))


def test_a_flipped_bit_is_found_in_the_record_it_is_in(tmp_path, records):
    write_tfrecord(tmp_path / "a.tfrecord", records[:3])
    content = bytearray((tmp_path / "a.tfrecord").read_bytes())
    content[16 + len(records[0]) + 100] ^= 4
    (tmp_path / "a.tfrecord").write_bytes(content)
    files = TFRecordFiles([tmp_path / "a.tfrecord"])
    assert files.read(0) == records[0]
    assert files.read(2) == records[2]
    with pytest.raises(CorruptImage, match=r"a\.tfrecord at byte \d+: the CRC is not the stored"):
        files.read(1)


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c[:5], lambda c: b"x" + c[1:]])
def test_files_that_are_no_tfrecords(tmp_path, records, damage):
    write_tfrecord(tmp_path / "a.tfrecord", records[:1])
    path = tmp_path / "a.tfrecord"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"a\.tfrecord is damaged at byte 0, or no TFRecord file"):
        TFRecordFiles([path])


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "a.tfrecord").write_bytes(b"")
    assert len(TFRecordFiles([tmp_path / "a.tfrecord"])) == 0


def test_an_array_record_file_that_is_none(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"x-{part}.array_record").write_bytes(b"no records" * 100)
    with pytest.raises(UserError, match=r"array_record.*; fix: get it again"):
        load(config("array_record", tmp_path))
