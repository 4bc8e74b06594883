"""Write the Parquet files of this folder, as Hugging Face's datasets writes them.

usage: make_parquet.py
needs: pip install pyarrow
"""
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
message = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())])
chats = pa.table({
    "id": pa.array([1, 2, 3]),
    "messages": pa.array([
        [{"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "Hello!", "name": None}],
        [{"role": "user", "content": "Grüße 🦀", "name": "Ada"}, {"role": "assistant", "content": "", "name": None}],
        [],
    ], pa.list_(message)),
})
pq.write_table(chats, HERE / "chats.parquet", compression="snappy")
pairs = pa.table({"input": [f"{i} + 1" for i in range(300)], "output": [str(i + 1) for i in range(299)] + [None]})
pq.write_table(pairs, HERE / "pairs.parquet", compression="zstd", row_group_size=100)
for compression in ["gzip", "lz4", "brotli"]:
    pq.write_table(chats, HERE / f"{compression}.parquet", compression=compression)
