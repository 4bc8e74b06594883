"""Runs the real MLflow server on loopback, trains on it, and reads the run back with MLflow's own client.

    python tests/python/check_mlflow.py LORA [CONFIG]

LORA is the program of that recipe. A run is stopped and resumed; it must be one run on the server, whose numbers are those of
the JSON Lines log. Then the server is killed in the middle of a run, which must end well.
"""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-that-nobody-may-see"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    def __init__(self, folder):
        self.address = f"http://127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.address.rsplit(":", 1)[1],
                   "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts",
                   "--workers", "1"]
        self.log = open(folder / "server.log", "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True, cwd=folder)
        until = time.time() + 180
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2).read()
                return
            except OSError:
                if time.time() > until or self.process.poll() is not None:
                    sys.exit(f"the MLflow server does not start: {(folder / 'server.log').read_text()[-3000:]}")
                time.sleep(0.5)

    def kill(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def train(program, config, output, address, *more, expect=0):
    command = [program, "--config", config, f"output_dir={output}", "epochs=1", "log_every_n_steps=1", "~exact_match", "seed=1",
               f"metric_logger=[jsonl, {{_component_: mlflow, tracking_uri: '{address}', experiment_name: trial}}]", *more]
    environment = {**os.environ, "MLFLOW_TRACKING_TOKEN": TOKEN}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    said = done.stdout + done.stderr
    assert done.returncode == expect, said
    assert TOKEN not in said
    for path in output.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    return said


def check(client, output, resumed):
    remembered = json.loads((output / "logs/mlflow_run.json").read_text())
    run = client.get_run(remembered["run_id"])
    assert run.info.status == "FINISHED", run.info.status
    assert client.get_experiment(run.info.experiment_id).name == "trial"
    assert run.data.params["optimizer.lr"] and run.data.params["seed"] == "1", run.data.params
    logged = {}
    for line in (output / "logs/metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in ("step", "note", "time") and value is not None:
                logged.setdefault(name, {})[record["step"]] = value
    assert len(logged["loss"]) > 4
    count = 0
    for name, expected in logged.items():
        points = client.get_metric_history(run.info.run_id, name)
        # Of a step that was done twice, the last point counts.
        found = {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}
        assert found.keys() == expected.keys(), (name, found, expected)
        assert all(math.isclose(found[step], value, rel_tol=1e-12) for step, value in expected.items()), (name, found, expected)
        assert resumed or len(points) == len(expected)
        count += len(found)
    return count, run


def main(program, config):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        server = Server(folder)
        try:
            client = MlflowClient(server.address)
            output = folder / "run"
            train(program, config, output, server.address, "max_steps_per_epoch=8", "checkpointer.save_every_n_steps=4")
            count, first = check(client, output, False)
            # As if it had been stopped: its last checkpoint is gone.
            checkpoints = sorted(output.glob("epoch_*"), key=lambda path: int(path.name.rsplit("_", 1)[1]))
            subprocess.run(["rm", "-r", str(checkpoints[-1])], check=True)
            train(program, config, output, server.address, "max_steps_per_epoch=8", "checkpointer.save_every_n_steps=4",
                  "resume_from_checkpoint=true")
            again, second = check(client, output, True)
            assert first.info.run_id == second.info.run_id and again == count
            experiment = client.get_experiment_by_name("trial")
            assert len(client.search_runs([experiment.experiment_id])) == 1
            print(f"{count} numbers read back by MLflow; a resumed run is the same run")
        finally:
            server.kill()
        # The server is gone: one warning, and the run ends well.
        said = train(program, config, folder / "alone", server.address, "max_steps_per_epoch=8")
        warnings = [line for line in said.splitlines() if line.startswith("warning: MLflow at ")]
        going_on = [line for line in warnings if "The run goes on" in line]
        assert 1 <= len(warnings) <= 2 and len(going_on) <= 1, said
        assert len((folder / "alone/logs/metrics.jsonl").read_text().splitlines()) >= 8
        print("a run without its server ends well")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "configs/lora/tiny.yaml")
