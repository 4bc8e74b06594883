"""Compares the speed of `tune serve` with that of llama.cpp's server, for clients that all ask at once.

    cargo build --release -p recipes --bin tune -p tune-serve --bin tune-serve
    python benches/serving.py --model target/ci/smollm2 --threads 4

Each client sends its requests one after the other, and streams the answers: prompts of the same length and different content,
answers of a fixed number of tokens (the end of an answer is ignored), drawn greedily. All servers compute in the same type on the same
number of threads. Printed are new tokens a second of all clients together, the time to the first token and the time between two tokens,
as medians and ninth deciles.

Servers that are compared, one after the other, never two at a time:

- `tune serve` on the folder;
- llama.cpp's own server, which the package `xllamacpp` brings compiled, on a GGUF file that `tune export` makes of the folder;
- the server of the package `llama-cpp-python`, on the same file, where that package is installed with its `server` extra.

Needs the standard library, and xllamacpp or llama-cpp-python.
"""

import argparse
import http.client
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# llama.cpp's server, in a process of its own, so that its threads are ended with it.
LLAMA_CPP = """
import sys, time
import xllamacpp as xlc
path, threads, clients, room, kind = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
params = xlc.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = room, clients, 0, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.hostname, params.port = "127.0.0.1", 0
if kind == "f32":
    params.cache_type_k = params.cache_type_v = xlc.ggml_type.GGML_TYPE_F32
server = xlc.Server(params)
print(server.listening_address, flush=True)
time.sleep(3600)
"""


def words(client, request, length):
    """A prompt that shares no beginning with another client's."""
    first = client * 1009 + request * 7919
    return " ".join(str((first + i * 31) % 997) for i in range(length))


class Asked:
    """What one request took."""

    def __init__(self, address, body):
        began = time.perf_counter()
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=600)
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            sys.exit(f"{address}: {response.status} {response.read().decode()}")
        times, self.tokens = [], 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("usage"):
                self.tokens = event["usage"]["completion_tokens"]
            if event.get("choices"):
                times.append(time.perf_counter())
        connection.close()
        self.first, self.whole = times[0] - began, times[-1] - began
        self.between = (times[-1] - times[0]) / max(1, self.tokens - 1)


def measure(address, model, args):
    body = dict(model=model, max_tokens=args.tokens, temperature=0, stream=True, stream_options=dict(include_usage=True),
                ignore_eos=True)
    Asked(address, body | dict(prompt=words(99, 99, 8)))
    asked, lock = [], threading.Lock()

    def client(i):
        for request in range(args.requests):
            one = Asked(address, body | dict(prompt=words(i, request, args.prompt)))
            with lock:
                asked.append(one)

    began = time.perf_counter()
    clients = [threading.Thread(target=client, args=(i,)) for i in range(args.clients)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    took = time.perf_counter() - began
    tokens = sum(one.tokens for one in asked)
    if tokens != args.clients * args.requests * args.tokens:
        print(f"  note: {tokens} tokens instead of {args.clients * args.requests * args.tokens}: answers ended early")

    def shown(values):
        deciles = statistics.quantiles(values, n=10) if len(values) > 1 else values * 9
        return f"{1000 * statistics.median(values):.0f} ms ({1000 * deciles[8]:.0f})"

    print(f"  {tokens / took:.1f} new tokens/s; first token {shown([one.first for one in asked])}, between tokens "
          f"{shown([one.between for one in asked])}", flush=True)
    return tokens / took


class Running:
    """A server in a process of its own; `found` finds its address in a line of its output."""

    def __init__(self, command, found, threads):
        env = os.environ | dict(RAYON_NUM_THREADS=str(threads), OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=env, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)
        self.address = next((address for address in map(found, self.process.stdout) if address), None)
        if not self.address:
            sys.exit(f"{command[0]} did not start")

    def __enter__(self):
        return self.address

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def wait_until_loaded(address, process=None):
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection(host, int(port), timeout=5)
            connection.request("GET", "/v1/models")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    sys.exit(f"{address} does not answer")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a model's folder")
    parser.add_argument("--tune", type=Path, default=ROOT / "target/release/tune")
    parser.add_argument("--type", choices=["f32", "bf16"], default="f32", help="what weights are stored and computed in")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--prompt", type=int, default=60, help="words of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of an answer")
    args = parser.parse_args()
    speeds = {}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.gguf"
        subprocess.run([args.tune, "export", args.model, "--to", file, "--type", args.type], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)
        print("tune serve", flush=True)
        ours = [args.tune, "serve", args.model, "--name", "model", "--port", 0, "--max-sequences", args.clients,
                "--dtype", "fp32" if args.type == "f32" else "bf16"]
        of_ours = lambda line: "http://" + line.split("http://")[1].split("/v1")[0] if "http://" in line else None
        with Running(ours, of_ours, args.threads) as address:
            speeds["tune serve"] = measure(address, "model", args)
        room = args.clients * (8 * args.prompt + args.tokens + 64)
        if importlib.util.find_spec("xllamacpp"):
            print("llama.cpp's server (xllamacpp)", flush=True)
            theirs = [sys.executable, "-c", LLAMA_CPP, file, args.threads, args.clients, room, args.type]
            with Running(theirs, lambda line: line.strip() if line.startswith("http") else None, args.threads) as address:
                wait_until_loaded(address)
                speeds["llama.cpp"] = measure(address, "model", args)
        if importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("uvicorn"):
            print("llama-cpp-python's server", flush=True)
            port = 18080
            theirs = [sys.executable, "-c", "print('starts', flush=True); from llama_cpp.server.__main__ import main; main()", "--model", file,
                      "--n_ctx", room, "--n_threads", args.threads, "--n_threads_batch", args.threads, "--host", "127.0.0.1",
                      "--port", port]
            with Running(theirs, lambda line: f"http://127.0.0.1:{port}" if line.startswith("starts") else None, args.threads) as address:
                wait_until_loaded(address)
                speeds["llama-cpp-python"] = measure(address, "model", args)
    ours = speeds.pop("tune serve")
    for name, speed in speeds.items():
        print(f"tune serve has {ours / speed:.2f} times the tokens a second of {name}")


main()
