"""Write the Parquet files of this folder: every logical type, and every form of lists and maps that writers have had.

usage: make.py
needs: pip install pyarrow

types.parquet     what pyarrow writes
dated.parquet     conversations whose messages have a timestamp
older.parquet     types that pyarrow does not write, or writes in the new way only, byte by byte
lists.parquet     lists and maps as Hive, Spark 2, Avro, Thrift, Impala and protobuf write them, byte by byte
expected.json     the rows of each as pyarrow reads them; a value that JSON has no form for is {"python": its type}
"""
import datetime
import decimal
import json
import math
import pathlib
import struct
import uuid

import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent

# ---------------------------------------------------------------------------------------------------------------------
# What pyarrow writes.

DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12, 30, 1)


def column(type, value):
    return pa.array([value, None], type)


types = {
    "string": column(pa.string(), "Grüße 🦀"),
    "large_string": column(pa.large_string(), "long"),
    "json": column(pa.json_(pa.string()), '{"a": 1}'),
    "dictionary": pa.array(["of few", None]).dictionary_encode(),
    "bytes_of_text": column(pa.binary(), b"as Impala has text"),
    "bytes": column(pa.binary(), b"\xff\xfe"),
    "fixed": column(pa.binary(4), b"four"),
    "uuid": column(pa.uuid(), uuid.UUID(int=7).bytes),
    "bool": column(pa.bool_(), True),
    **{str(t): column(t, 2 ** (t.bit_width - 1) - 1) for t in [pa.int8(), pa.int16(), pa.int32(), pa.int64()]},
    **{str(t): column(t, 2**t.bit_width - 1) for t in [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]},
    "float16": column(pa.float16(), 0.5),
    "float32": column(pa.float32(), 0.1),
    "float64": column(pa.float64(), 0.1),
    "nan": column(pa.float64(), math.nan),
    "infinity": column(pa.float32(), -math.inf),
    "decimal_small": column(pa.decimal128(5, 2), decimal.Decimal("3.14")),
    "decimal_medium": column(pa.decimal128(15, 2), decimal.Decimal("-3.14")),
    "decimal_large": column(pa.decimal128(38, 0), decimal.Decimal(10**37)),
    "date": column(pa.date32(), DAY),
    "time_ms": column(pa.time32("ms"), datetime.time(1, 2, 3)),
    "time_us": column(pa.time64("us"), datetime.time(1, 2, 3)),
    "time_ns": column(pa.time64("ns"), datetime.time(1, 2, 3)),
    "timestamp_ms": column(pa.timestamp("ms"), NOON),
    "timestamp_us": column(pa.timestamp("us", "UTC"), NOON),
    "timestamp_ns": column(pa.timestamp("ns"), NOON),
    "null": pa.nulls(2),
    "list": column(pa.list_(pa.string()), ["a", None, "b"]),
    "list_of_lists": column(pa.list_(pa.list_(pa.int32())), [[1], [], None, [2, 3]]),
    "struct": column(pa.struct([("a", pa.string()), ("when", pa.date32())]), {"a": "x", "when": DAY}),
    "map": column(pa.map_(pa.string(), pa.int32()), [("one", 1), ("two", None)]),
    "map_of_numbers": column(pa.map_(pa.int32(), pa.list_(pa.string())), [(1, ["x", "y"]), (2, [])]),
    "map_of_days": column(pa.map_(pa.date32(), pa.string()), [(DAY, "leap")]),
    "list_of_structs": column(
        pa.list_(pa.struct([("role", pa.string()), ("calls", pa.list_(pa.struct([("name", pa.string())])))])),
        [{"role": "user", "calls": []}, {"role": "assistant", "calls": [{"name": "f"}, {"name": "g"}]}],
    ),
}
pq.write_table(pa.table(types), HERE / "types.parquet", compression="zstd")

turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("when", pa.timestamp("us"))])
pq.write_table(pa.table({
    "messages": pa.array([[{"role": "user", "content": "q", "when": NOON},
                           {"role": "assistant", "content": "a", "when": NOON}]], pa.list_(turn)),
    "dates": pa.array([[DAY]]),
}), HERE / "dated.parquet")

# ---------------------------------------------------------------------------------------------------------------------
# Byte by byte: one row group, one data page a column, plain values, no compression.

BOOLEAN, INT32, INT64, INT96, FLOAT, DOUBLE, BYTES, FIXED = range(8)
REQUIRED, OPTIONAL, REPEATED = range(3)
UTF8, MAP, MAP_KEY_VALUE, LIST, ENUM = range(5)
DECIMAL, DATE, TIME_MILLIS, TIME_MICROS, TIMESTAMP_MILLIS, TIMESTAMP_MICROS = range(5, 11)
UINT_8, UINT_16, UINT_32, UINT_64, INT_8, INT_16, INT_32, INT_64, JSON, BSON, INTERVAL = range(11, 22)


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


class Fields:
    """A struct in Thrift's compact protocol."""

    def __init__(self):
        self.bytes, self.last = b"", 0

    def add(self, id, kind, content):
        step = id - self.last
        self.bytes += (bytes([step << 4 | kind]) if step < 16 else bytes([kind]) + varint(id << 1)) + content
        self.last = id
        return self

    def number(self, id, n, kind=5):
        return self if n is None else self.add(id, kind, varint(n << 1 if n >= 0 else (-n << 1) - 1))

    def text(self, id, text):
        return self.add(id, 8, varint(len(text.encode())) + text.encode())

    def struct(self, id, fields):
        return self if fields is None else self.add(id, 12, fields.end())

    def list(self, id, kind, items):
        head = bytes([len(items) << 4 | kind]) if len(items) < 15 else bytes([0xF0 | kind]) + varint(len(items))
        return self.add(id, 9, head + b"".join(items))

    def end(self):
        return self.bytes + b"\0"


class Node:
    def __init__(self, name, repetition, type=None, children=(), mark=None, logical=None, length=None, decimal=None):
        self.name, self.repetition, self.type, self.children = name, repetition, type, children
        self.mark, self.logical, self.length, self.decimal = mark, logical, length, decimal

    def elements(self):
        own = Fields().number(1, self.type).number(2, self.length).number(3, self.repetition).text(4, self.name)
        own.number(5, len(self.children) or None).number(6, self.mark)
        if self.decimal:
            own.number(7, self.decimal[1]).number(8, self.decimal[0])
        own.struct(10, self.logical)
        return [own.end()] + [element for child in self.children for element in child.elements()]

    def leaves(self, path=(), repetition=0, definition=0):
        """(node, path, levels)"""
        path, repetition = path + (self.name,), repetition + (self.repetition == REPEATED)
        definition += self.repetition != REQUIRED
        if not self.children:
            return [(self, path, repetition, definition)]
        return [leaf for child in self.children for leaf in child.leaves(path, repetition, definition)]

    def shred(self, value, cells, path=(), repetition=0, definition=0, depth=0):
        """Adds (repetition, definition, value) to the cells of each leaf; what is repeated is a list."""
        path = path + (self.name,)
        items = value if self.repetition == REPEATED else [value]
        depth += self.repetition == REPEATED
        if not items or items == [None]:
            for _, leaf, _, _ in self.leaves(path[:-1]):
                cells[leaf].append((repetition, definition, None))
            return
        definition += self.repetition != REQUIRED
        for i, item in enumerate(items):
            at = depth if i else repetition
            if not self.children:
                cells[path].append((at, definition, item))
            for child in self.children:
                child.shred(item.get(child.name), cells, path, at, definition, depth)


def levels(values, largest):
    if not largest:
        return b""
    width = (largest.bit_length() + 7) // 8
    runs = b"".join(varint(1 << 1) + value.to_bytes(width, "little") for value in values)
    return struct.pack("<I", len(runs)) + runs


def plain(node, values):
    if node.type == BOOLEAN:
        return bytes([sum(value << i for i, value in enumerate(values))])
    codes = {INT32: "<i", INT64: "<q", FLOAT: "<f", DOUBLE: "<d"}
    if node.type in codes:
        return b"".join(struct.pack(codes[node.type], value) for value in values)
    values = [value.encode() if isinstance(value, str) else value for value in values]
    if node.type == BYTES:
        values = [struct.pack("<I", len(value)) + value for value in values]
    return b"".join(values)


def write(name, columns, rows):
    leaves = [leaf for column in columns for leaf in column.leaves()]
    cells = {path: [] for _, path, _, _ in leaves}
    for row in rows:
        for column in columns:
            column.shred(row.get(column.name), cells)
    out, chunks = b"PAR1", []
    for node, path, repetition, definition in leaves:
        at = cells[path]
        body = levels([cell[0] for cell in at], repetition) + levels([cell[1] for cell in at], definition)
        body += plain(node, [cell[2] for cell in at if cell[2] is not None])
        data = Fields().number(1, len(at)).number(2, 0).number(3, 3).number(4, 3)
        page = Fields().number(1, 0).number(2, len(body)).number(3, len(body)).struct(5, data).end() + body
        names = [varint(len(part.encode())) + part.encode() for part in path]
        meta = Fields().number(1, node.type).list(2, 5, [b"\0", b"\6"]).list(3, 8, names).number(4, 0)
        meta.number(5, len(at), 6).number(6, len(page), 6).number(7, len(page), 6).number(9, len(out), 6)
        chunks.append(Fields().number(2, len(out), 6).struct(3, meta).end())
        out += page
    group = Fields().list(1, 12, chunks).number(2, len(out), 6).number(3, len(rows), 6).end()
    schema = [Fields().text(4, "schema").number(5, len(columns)).end()]
    schema += [element for column in columns for element in column.elements()]
    footer = Fields().number(1, 1).list(2, 12, schema).number(3, len(rows), 6).list(4, 12, [group]).end()
    (HERE / name).write_bytes(out + footer + struct.pack("<I", len(footer)) + b"PAR1")


def logical(id, fields=None):
    """A member of the union LogicalType."""
    return Fields().struct(id, fields or Fields())


# Types: each column with the value of its first row; the second has none.
older = [
    (Node("utf8", OPTIONAL, BYTES, mark=UTF8), "Grüße"),
    (Node("utf8_that_is_none", OPTIONAL, BYTES, mark=UTF8), b"\xff"),
    (Node("enum", OPTIONAL, BYTES, mark=ENUM), "RED"),
    (Node("enum_new", OPTIONAL, BYTES, logical=logical(4)), "GREEN"),
    (Node("json", OPTIONAL, BYTES, mark=JSON), "[1]"),
    (Node("bson", OPTIONAL, BYTES, mark=BSON), b"\5\0\0\0\0"),
    (Node("bson_new", OPTIONAL, BYTES, logical=logical(13)), b"\5\0\0\0\0"),
    (Node("decimal_32", OPTIONAL, INT32, mark=DECIMAL, decimal=(5, 2)), 314),
    (Node("decimal_64", OPTIONAL, INT64, mark=DECIMAL, decimal=(15, 2)), -314),
    (Node("decimal_bytes", OPTIONAL, BYTES, mark=DECIMAL, decimal=(5, 2)), b"\1\0"),
    (Node("decimal_fixed", OPTIONAL, FIXED, length=3, mark=DECIMAL, decimal=(5, 2)), b"\0\1\0"),
    (Node("date", OPTIONAL, INT32, mark=DATE), 19782),
    (Node("time_millis", OPTIONAL, INT32, mark=TIME_MILLIS), 1),
    (Node("time_micros", OPTIONAL, INT64, mark=TIME_MICROS), 1),
    (Node("timestamp_millis", OPTIONAL, INT64, mark=TIMESTAMP_MILLIS), 1),
    (Node("timestamp_micros", OPTIONAL, INT64, mark=TIMESTAMP_MICROS), 1),
    (Node("int96", OPTIONAL, INT96), struct.pack("<qI", 1000, 2440588)),
    (Node("interval", OPTIONAL, FIXED, length=12, mark=INTERVAL), bytes(12)),
    (Node("uint_8", OPTIONAL, INT32, mark=UINT_8), 255),
    (Node("uint_16", OPTIONAL, INT32, mark=UINT_16), 65535),
    (Node("uint_32", OPTIONAL, INT32, mark=UINT_32), -1),
    (Node("uint_64", OPTIONAL, INT64, mark=UINT_64), -1),
    (Node("int_8", OPTIONAL, INT32, mark=INT_8), -128),
    (Node("int_16", OPTIONAL, INT32, mark=INT_16), -32768),
    (Node("int_32", OPTIONAL, INT32, mark=INT_32), -1),
    (Node("int_64", OPTIONAL, INT64, mark=INT_64), -1),
    (Node("unknown", OPTIONAL, INT32, logical=logical(11)), None),
    (Node("uuid", OPTIONAL, FIXED, length=16, logical=logical(14)), b"0123456789abcdef"),
    (Node("float16", OPTIONAL, FIXED, length=2, logical=logical(15)), b"\0\x38"),
    (Node("geometry", OPTIONAL, BYTES, logical=logical(17)), b"\1\1\0\0\0" + bytes(16)),
    (Node("geography", OPTIONAL, BYTES, logical=logical(18)), b"\1\1\0\0\0" + bytes(16)),
    (Node("variant", OPTIONAL, children=[Node("metadata", REQUIRED, BYTES), Node("value", REQUIRED, BYTES)],
          logical=logical(16)), {"metadata": b"\1\0\0", "value": b"\0"}),
    (Node("bool", REQUIRED, BOOLEAN), True),
    (Node("float", REQUIRED, FLOAT), 0.5),
    (Node("double", REQUIRED, DOUBLE), 0.1),
]
write("older.parquet", [node for node, _ in older], [
    {node.name: value for node, value in older},
    {"bool": False, "float": 1.5, "double": 2.5},
])


def text(name, repetition=OPTIONAL):
    return Node(name, repetition, BYTES, mark=UTF8)


def turns(name="element", repetition=OPTIONAL, **more):
    return Node(name, repetition, children=[text("role"), text("content")], **more)


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
lists = [
    # (the schema, what it holds)
    (Node("today", OPTIONAL, mark=LIST, children=[Node("list", REPEATED, children=[turns()])]),
     {"list": [{"element": turn} for turn in CHAT]}),
    (Node("today_by_logical", OPTIONAL, logical=logical(3), children=[Node("list", REPEATED, children=[turns()])]),
     {"list": [{"element": CHAT[0]}, {"element": None}]}),
    (Node("hive", OPTIONAL, mark=LIST, children=[Node("bag", REPEATED, children=[turns("array_element")])]),
     {"bag": [{"array_element": turn} for turn in CHAT]}),
    (Node("avro", REQUIRED, mark=LIST, children=[turns("array", REPEATED)]), {"array": CHAT}),
    (Node("avro_of_one", OPTIONAL, mark=LIST, children=[Node("array", REPEATED, children=[text("text")])]),
     {"array": [{"text": "a"}, {"text": None}]}),
    (Node("thrift", OPTIONAL, mark=LIST, children=[Node("thrift_tuple", REPEATED, children=[text("text")])]),
     {"thrift_tuple": [{"text": "a"}, {"text": "b"}]}),
    (Node("other_tuple", OPTIONAL, mark=LIST, children=[Node("bag_tuple", REPEATED, children=[text("text")])]),
     {"bag_tuple": [{"text": "a"}, {"text": "b"}]}),
    (Node("of_text", OPTIONAL, mark=LIST, children=[text("array", REPEATED)]), {"array": ["a", "b"]}),
    (Node("of_text_named_element", OPTIONAL, mark=LIST, children=[text("element", REPEATED)]), {"element": ["a"]}),
    (Node("of_structs_named_element", OPTIONAL, mark=LIST, children=[turns("element", REPEATED)]), {"element": CHAT}),
    (Node("of_one_field", OPTIONAL, mark=LIST, children=[Node("element", REPEATED, children=[text("text")])]),
     {"element": [{"text": "a"}, {"text": None}]}),
    (Node("nested_avro", OPTIONAL, mark=LIST, children=[
        Node("array", REPEATED, mark=LIST, children=[Node("array", REPEATED, INT32)])]),
     {"array": [{"array": [1, 2]}, {"array": []}, {"array": [3]}]}),
    (Node("nested_hive", OPTIONAL, mark=LIST, children=[Node("bag", REPEATED, children=[
        Node("array_element", OPTIONAL, mark=LIST, children=[Node("bag", REPEATED, children=[text("array_element")])])
    ])]),
     {"bag": [{"array_element": {"bag": [{"array_element": "a"}, {"array_element": None}]}}, {"array_element": None}]}),
    (Node("mixed", OPTIONAL, mark=LIST, children=[Node("array", REPEATED, children=[
        text("role"), Node("calls", OPTIONAL, mark=LIST, children=[
            Node("array", REPEATED, children=[text("name"), Node("args", OPTIONAL, mark=MAP, children=[
                Node("map", REPEATED, mark=MAP_KEY_VALUE, children=[text("key", REQUIRED), text("value")])])])])])]),
     {"array": [
         {"role": "user", "calls": None},
         {"role": "assistant", "calls": {"array": [
             {"name": "f", "args": {"map": [{"key": "x", "value": "1"}, {"key": "y", "value": None}]}},
             {"name": "g", "args": {"map": []}}, {"name": "h", "args": None}]}}]}),
    (turns("protobuf", REPEATED), CHAT),
    (text("protobuf_text", REPEATED), ["a", "b", "c"]),
    (Node("protobuf_deep", REPEATED, children=[text("role"), Node("calls", REPEATED, children=[
        text("name"), text("args", REPEATED)])]),
     [{"role": "user", "calls": []}, {"role": "assistant", "calls": [
         {"name": "f", "args": ["1", "2"]}, {"name": "g", "args": []}]}]),
    (Node("protobuf_in_struct", OPTIONAL, children=[Node("id", OPTIONAL, INT64), turns("turns", REPEATED)]),
     {"id": 7, "turns": CHAT}),
    (Node("list_of_repeated", OPTIONAL, mark=LIST, children=[
        Node("list", REPEATED, children=[text("items", REPEATED)])]),
     {"list": [{"items": ["a", "b"]}, {"items": []}]}),
    (Node("map", OPTIONAL, mark=MAP, children=[
        Node("key_value", REPEATED, children=[text("key", REQUIRED), Node("value", OPTIONAL, INT32)])]),
     {"key_value": [{"key": "a", "value": 1}, {"key": "b", "value": None}]}),
    (Node("map_of_hive", OPTIONAL, mark=MAP_KEY_VALUE, children=[
        Node("map", REPEATED, children=[text("key", REQUIRED), text("value")])]),
     {"map": [{"key": "a", "value": "1"}]}),
    (Node("map_of_avro", REQUIRED, mark=MAP, children=[
        Node("map", REPEATED, mark=MAP_KEY_VALUE, children=[text("key", REQUIRED), turns("value", REQUIRED)])]),
     {"map": [{"key": "first", "value": CHAT[0]}]}),
    (Node("map_of_lists", OPTIONAL, mark=MAP, children=[Node("entries", REPEATED, children=[
        text("keys", REQUIRED), Node("values", OPTIONAL, mark=LIST, children=[text("array", REPEATED)])])]),
     {"entries": [{"keys": "a", "values": {"array": ["x", "y"]}}, {"keys": "b", "values": {"array": []}}]}),
    (Node("struct", OPTIONAL, children=[text("a"), Node("b", OPTIONAL, children=[text("c")])]), {"a": "x", "b": {"c": "y"}}),
    (Node("struct_of_nulls", OPTIONAL, children=[text("a"), Node("b", OPTIONAL, children=[text("c")])]),
     {"a": None, "b": {"c": None}}),
]
empty = {"avro": {"array": []}, "map_of_avro": {"map": []}}
write("lists.parquet", [node for node, _ in lists], [
    {node.name: value for node, value in lists},
    empty,
    {node.name: value for node, value in lists},
])


# ---------------------------------------------------------------------------------------------------------------------
# What pyarrow reads.


def plain_json(value, type):
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"python": "float"}
    if pa.types.is_map(type):
        items = [(key, plain_json(item, type.item_type)) for key, item in value]
        if all(isinstance(key, (str, int)) for key, _ in items):
            return {str(key): item for key, item in items}
        return {"python": "map"}
    if isinstance(value, list):
        return [plain_json(item, type.value_type) for item in value]
    if isinstance(value, dict):
        fields = {field.name: plain_json(value[field.name], field.type) for field in type}
        return {name: item for name, item in fields.items() if item is not None}
    return {"python": f"{value.__class__.__module__}.{value.__class__.__name__}"}


def read(name):
    file = pq.ParquetFile(HERE / name)
    rows = [{} for _ in range(file.metadata.num_rows)]
    for field in file.schema_arrow:
        try:
            values = pq.read_table(HERE / name, columns=[field.name])[field.name]
            values = [plain_json(value, values.type) for value in values.to_pylist()]
        except Exception as error:
            values = [{"python": error.__class__.__name__}] * len(rows)
        for row, value in zip(rows, values):
            row[field.name] = value
    return rows


expected = {name: read(name) for name in ["types.parquet", "older.parquet", "lists.parquet"]}
(HERE / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
