"""Write the Arrow files of this folder.

usage: make.py
needs: pip install pyarrow datasets

stream.arrow, footer.feather   rows of every type, as a stream and as a file with a footer
lz4.arrow, zstd.arrow          a text whose buffers are compressed
splits/                        what `save_to_disk` of `datasets` writes of two splits
expected.json                  the rows as pyarrow reads them; a value that JSON has no form for is {"python": its type}
"""
import datetime
import decimal
import json
import math
import pathlib
import shutil

import datasets
import pyarrow as pa
import pyarrow.feather

HERE = pathlib.Path(__file__).parent
DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12, 30, 1)


def column(type, value):
    return pa.array([value, None], type)


types = {
    "string": column(pa.string(), "Grüße 🦀"),
    "large_string": column(pa.large_string(), "long"),
    "string_view": column(pa.string_view(), "a view of more than twelve bytes"),
    "dictionary": pa.array(["of few", None]).dictionary_encode(),
    "bytes_of_text": column(pa.binary(), b"text"),
    "bytes_view_of_text": column(pa.binary_view(), b"text"),
    "bytes": column(pa.large_binary(), b"\xff\xfe"),
    "fixed": column(pa.binary(4), b"four"),
    "bool": column(pa.bool_(), True),
    **{str(t): column(t, 2 ** (t.bit_width - 1) - 1) for t in [pa.int8(), pa.int16(), pa.int32(), pa.int64()]},
    **{str(t): column(t, 2**t.bit_width - 1) for t in [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]},
    "float16": column(pa.float16(), 0.5),
    "float32": column(pa.float32(), 0.25),
    "float64": column(pa.float64(), 0.1),
    "nan": column(pa.float64(), math.nan),
    "infinity": column(pa.float32(), -math.inf),
    "decimal": column(pa.decimal128(5, 2), decimal.Decimal("3.14")),
    "date": column(pa.date32(), DAY),
    "time": column(pa.time64("us"), datetime.time(1, 2, 3)),
    "timestamp": column(pa.timestamp("us", "UTC"), NOON),
    "duration": column(pa.duration("s"), datetime.timedelta(1)),
    "null": pa.nulls(2),
    "list": column(pa.list_(pa.string()), ["a", None, "b"]),
    "large_list": column(pa.large_list(pa.int32()), [1, 2]),
    "fixed_list": column(pa.list_(pa.int32(), 2), [1, 2]),
    "list_view": column(pa.list_view(pa.int32()), [1, 2]),
    "list_of_lists": column(pa.list_(pa.list_(pa.int32())), [[1], [], None, [2, 3]]),
    "struct": column(pa.struct([("a", pa.string()), ("when", pa.date32())]), {"a": "x", "when": DAY}),
    "map": column(pa.map_(pa.string(), pa.int32()), [("one", 1), ("two", None)]),
    "map_of_days": column(pa.map_(pa.date32(), pa.string()), [(DAY, "leap")]),
    "messages": column(
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    ),
}
table = pa.table(types)
with pa.OSFile(str(HERE / "stream.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
    # Two batches.
    writer.write_table(table, max_chunksize=1)
pa.feather.write_feather(table, str(HERE / "footer.feather"), compression="uncompressed")
for compression in ["lz4", "zstd"]:
    text = pa.table({"text": ["a text that is long enough to be compressed, " * 9]})
    pa.feather.write_feather(text, str(HERE / f"{compression}.arrow"), compression=compression)

shutil.rmtree(HERE / "splits", ignore_errors=True)
datasets.DatasetDict({
    "train": datasets.Dataset.from_dict({"text": ["one", "two"]}),
    "test": datasets.Dataset.from_dict({"text": ["three"]}),
}).save_to_disk(str(HERE / "splits"))


def plain(value, type):
    """As JSON has it."""
    if value is None:
        return None
    if pa.types.is_map(type):
        if not pa.types.is_string(type.key_type):
            return {"python": "map"}
        return {key: plain(item, type.item_type) for key, item in value}
    if isinstance(value, dict):
        fields = {field.name: plain(value[field.name], field.type) for field in type}
        return {name: item for name, item in fields.items() if item is not None}
    if isinstance(value, list):
        return [plain(item, type.value_type) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode() if not pa.types.is_fixed_size_binary(type) else {"python": "builtins.bytes"}
        except UnicodeDecodeError:
            return {"python": "builtins.bytes"}
    if isinstance(value, float) and not math.isfinite(value):
        return {"python": "float"}
    if isinstance(value, (str, bool, int, float)):
        return value
    return {"python": f"{value.__class__.__module__}.{value.__class__.__name__}"}


rows = [{name: plain(column[i].as_py(), column.type) for name, column in types.items()} for i in range(2)]
json.dump(rows, open(HERE / "expected.json", "w"), ensure_ascii=False, indent=1)
