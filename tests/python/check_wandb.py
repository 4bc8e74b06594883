"""Checks the Weights & Biases log of a run against its JSON Lines log, with wandb's own messages and its own `wandb sync`.

    python tests/python/check_wandb.py LORA [CONFIG]

LORA is the program of that recipe. A run is stopped and resumed; it must be one log, in which every record is a message that
wandb knows, without unknown fields, and whose rows are those of the JSON Lines log. Then the real client uploads the
folder to a server on loopback, which stands for wandb's, and what arrives there must be these rows, too, and the run's config.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from google.protobuf import unknown_fields as unknown_field_set
from wandb.proto import wandb_internal_pb2 as messages

ROOT = Path(__file__).resolve().parents[2]
BLOCK = 32768
KEY = "a1b2" * 10


def records(path):
    """Messages of the log, with their checksums checked."""
    data = path.read_bytes()
    assert data[:7] == b":W&B\xe1\xbe\x00", data[:7]
    at, whole = 7, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece = data[at + 7 : at + 7 + length]
        assert zlib.crc32(bytes([kind]) + piece) == int.from_bytes(data[at : at + 4], "little"), f"checksum at {at}"
        whole, at = whole + piece, at + 7 + length
        if kind in (1, 4):
            record = messages.Record()
            record.ParseFromString(whole)
            assert record.WhichOneof("record_type"), whole
            assert not list(unknown_field_set.UnknownFieldSet(record)), whole
            whole = b""
            yield record
    assert not whole


def logged(path):
    """Rows of the JSON Lines log, without times and what is null."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time" and v is not None} for row in rows]


def without_own(row):
    """A row of the history without wandb's own values."""
    return {k: v for k, v in row.items() if not k.startswith("_")}


class Wandb(BaseHTTPRequestHandler):
    """As much of wandb's server as an upload of a run asks for."""

    lines, configs = [], []

    def answer(self, body):
        body = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({})

    def do_PUT(self):
        self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path.endswith("/file_stream"):
            for name, part in (json.loads(body).get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    self.lines.extend(json.loads(line) for line in part["content"])
            return self.answer({"limits": {}})
        if self.path.startswith("/files/"):
            return self.answer({})
        query = json.loads(body or b"{}")
        text, variables = query.get("query", ""), query.get("variables") or {}
        if os.environ.get("VERBOSE"):
            print(text[:200], variables, file=sys.stderr)
        if "upsertBucket" in text:
            if variables.get("config"):
                self.configs.append(json.loads(variables["config"]))
            project = {"id": "p", "name": "tune", "entity": {"id": "e", "name": "someone"}}
            bucket = {"id": "b", "name": variables.get("name"), "displayName": "run", "description": None, "config": "{}",
                      "sweepName": None, "historyLineCount": 0, "project": project}
            return self.answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        if "viewer" in text:
            viewer = {"id": "u", "entity": "someone", "username": "someone", "flags": "{}", "teams": {"edges": []}}
            return self.answer({"data": {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "latestLocalVersionInfo": None}}})
        if "createRunFiles" in text:
            address = f"http://127.0.0.1:{self.server.server_port}/files/"
            files = [{"name": name, "uploadUrl": address + name} for name in variables["files"]]
            return self.answer({"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}})
        return self.answer({"data": {}})

    def log_message(self, *_):
        pass


def train(program, config, output, *more):
    command = [program, "--config", config, f"output_dir={output}", "epochs=1", "max_steps_per_epoch=8", "log_every_n_steps=1",
               "~exact_match", "seed=1", "checkpointer.save_every_n_steps=4",
               "metric_logger=[jsonl, {_component_: wandb, project: trial, name: a run, tags: [x, y]}]", *more]
    done = subprocess.run(command, env={**os.environ, "WANDB_API_KEY": KEY}, cwd=ROOT, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for text in [said.encode(), *(path.read_bytes() for path in output.rglob("*") if path.is_file())]:
        assert KEY.encode() not in text


def main(program, config):
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        train(program, config, output)
        first = (output / "logs/wandb_run.json").read_text()
        check(output)
        # As if it had been stopped: its last checkpoint is gone.
        checkpoints = sorted(output.glob("epoch_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))
        shutil.rmtree(checkpoints[-1])
        train(program, config, output, "resume_from_checkpoint=true")
        assert (output / "logs/wandb_run.json").read_text() == first
        check(output)


def check(output):
    Wandb.lines.clear()
    Wandb.configs.clear()
    remembered = json.loads((output / "logs/wandb_run.json").read_text())
    path = Path(remembered["folder"]) / f"run-{remembered['id']}.wandb"
    expected = logged(output / "logs/metrics.jsonl")
    assert len(expected) > 4, "the run is too short"

    read = list(records(path))
    kinds = [record.WhichOneof("record_type") for record in read]
    assert kinds[:2] == ["header", "run"] and kinds[-1] == "exit", kinds
    assert kinds.count("run") == 1 and read[1].run.project == "trial" and list(read[1].run.tags) == ["x", "y"]
    assert [record.num for record in read] == list(range(1, len(read) + 1))
    rows = [{item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in read if record.WhichOneof("record_type") == "history"]
    assert [without_own(row) for row in rows] == expected
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    config = {item.key: json.loads(item.value_json) for item in read[1].run.config.update}
    assert config["optimizer.lr"] and config["seed"] is not None, config
    print(f"{len(read)} records, {len(rows)} rows read back by wandb's messages")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Wandb)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
                       "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false", "WANDB_DIR": home}
        command = [str(Path(sys.executable).parent / "wandb"), "sync", "--include-synced", str(path.parent)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert [without_own(row) for row in Wandb.lines] == expected, (said, Wandb.lines)
    values = {key: value.get("value") for config in Wandb.configs for key, value in config.items() if isinstance(value, dict)}
    assert values["optimizer.lr"] == config["optimizer.lr"], values
    print(f"{len(Wandb.lines)} rows uploaded by `wandb sync`")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "configs/lora/tiny.yaml")
