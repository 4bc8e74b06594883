"""Compares the speed of `tune serve` with that of llama.cpp's server, for clients that all ask at once.

    cargo build --release -p recipes --bin tune -p tune-serve --bin tune-serve
    pip install xllamacpp==2026.10.11549
    python benches/serving.py --model MODEL.gguf --clients 16 --threads 4

Both servers read the same GGUF file, compute on the same number of threads, and run by turns, never two at a time: each is started,
answers, and is ended, `--rounds` times. Each client sends its requests one after the other and streams the answers: conversations of
the same length that differ from their first word on, answers drawn greedily. The clients run on the same processors as the servers.

Printed is a table in Markdown. New tokens are those that the server says it made; where it says nothing, the parts of its answers with
text are counted, which may be a few less. A note says where they are not as many as were asked for. The first token counts when its
text comes. Servers are warm: each has answered one short request before the time starts.

The other server is one of (`--peer`)

- `xllamacpp`: llama.cpp's own server, in a package that comes compiled. It has a slot for each client, with room for the longest
  conversation, and continuous batching, so that it computes the next tokens of all clients together as `tune serve` does.
- `llama-cpp-python`: the server of `pip install 'llama-cpp-python[server]'`, which compiles llama.cpp. It answers one request at a time,
  whatever is set; others wait, because it is told not to interrupt one answer for the next, as it would by default. It is also told to
  compute logits for the last token of a prompt only, and not to penalize repetition. It cannot ignore the end of an answer.

All else is as the servers have it by default, so products and memory of running sequences are of the types that each chooses:
`tune serve` computes in `--dtype`, with weights dequantized inside the products; llama.cpp multiplies blocks by inputs that it rounds to
8 bits, and has sequences in f16. For products of one type, compare on a file of `tune export MODEL --to MODEL.gguf --type f32`.
"""

import argparse
import datetime
import http.client
import importlib.metadata
import json
import os
import platform
import random
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
THINGS = """anchor apple barn basket bell boat book bread bridge candle castle chair cloud coat coin desert door drum engine feather
field fire flag forest garden glass hammer harbor hill horse island key ladder lamp letter map market mirror mountain needle orchard
paper pearl piano river road rope sail shell ship silver snow spoon star stone storm table tower train tree wagon well window wolf""".split()
# llama.cpp's server, in a process of its own, so that its threads are ended with it.
XLLAMACPP = """
import sys, time
import xllamacpp
path, (port, threads, slots, room) = sys.argv[1], map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = path, ["127.0.0.1"], port
params.n_parallel, params.n_ctx, params.cont_batching, params.n_gpu_layers = slots, slots * room, True, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.verbosity = -1
server = xllamacpp.Server(params)
time.sleep(24 * 3600)
"""


def ours(args, port):
    program = [args.tune] if args.tune.name.startswith("tune-serve") else [args.tune, "serve"]
    return [*program, args.model, "--port", port, "--name", "model", "--max-sequences", args.clients, "--dtype", args.dtype]


def room(args):
    """Tokens that a conversation may have; llama.cpp rounds up to 256 anyway."""
    return -(-(4 * args.prompt + args.max_tokens + 128) // 256) * 256


def xllamacpp(args, port):
    return [sys.executable, "-c", XLLAMACPP, args.model, port, args.threads, args.clients, room(args)]


def llama_cpp_python(args, port):
    return [sys.executable, "-m", "llama_cpp.server", "--model", args.model, "--host", "127.0.0.1", "--port", port, "--n_ctx", room(args),
            "--n_threads", args.threads, "--n_threads_batch", args.threads, "--interrupt_requests", "false", "--logits_all", "false",
            "--verbose", "false"]


# How each is started, and what its requests have beyond OpenAI's fields.
PEERS = {"xllamacpp": (xllamacpp, {"ignore_eos": True}), "llama-cpp-python": (llama_cpp_python, {"repeat_penalty": 1.0})}


def conversation(client, request, length):
    """A question that is as long as others and shares no beginning with them."""
    things = random.Random(f"{client} {request}").choices(THINGS, k=length)
    return [{"role": "user", "content": f"{', '.join(things)}. Tell a very long story in which all of these occur, one after the other."}]


class Asked:
    """What one request took, in seconds, and how many tokens it gave."""

    def __init__(self, port, body):
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise OSError(f"{response.status} {response.read().decode(errors='replace')}")
            times, said = [], None
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise OSError(str(event["error"]))
                said = event["usage"]["completion_tokens"] if event.get("usage") else said
                if any(choice["delta"].get("content") for choice in event.get("choices", [])):
                    times.append(time.perf_counter())
        finally:
            connection.close()
        if not times:
            raise OSError("an answer without text")
        self.tokens = len(times) if said is None else said
        self.first, self.whole = times[0] - began, time.perf_counter() - began
        self.between = (times[-1] - times[0]) / max(1, self.tokens - 1)


class Running:
    """A server in a process of its own that has answered a first request; inside `with`, its port."""

    def __init__(self, name, start, args, body):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(part) for part in start(args, self.port)]
        threads = {"RAYON_NUM_THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads)}
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, env=os.environ | threads, stdout=self.log, stderr=self.log)
        first = body | {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        for _ in range(1200):
            try:
                Asked(self.port, first)
                return
            except (OSError, http.client.HTTPException) as error:
                why = error
            if self.process.poll() is not None:
                break
            time.sleep(0.25)
        self.end()
        self.log.seek(0)
        sys.exit(f"{name} does not answer: {why}\n{self.log.read().decode(errors='replace')[-2000:]}")

    def end(self):
        self.process.terminate()
        self.process.wait()

    def __enter__(self):
        return self.port

    def __exit__(self, *_):
        self.end()


class Round:
    """All requests of all clients to one server."""

    def __init__(self, port, args, body):
        self.asked, self.errors = [], []
        clients = [threading.Thread(target=self.client, args=(port, args, body, number)) for number in range(args.clients)]
        began = time.perf_counter()
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        self.took = time.perf_counter() - began
        self.tokens = sum(one.tokens for one in self.asked)

    def client(self, port, args, body, number):
        for request in range(args.requests):
            try:
                self.asked.append(Asked(port, body | {"messages": conversation(number, request, args.prompt)}))
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(str(error))

    def row(self):
        def shown(values):
            if not values:
                return ""
            late = statistics.quantiles(values, n=20, method="inclusive")[18] if len(values) > 1 else values[0]
            return f"{statistics.median(values):.2f} s ({late:.2f})"

        between = f"{1000 * statistics.median(one.between for one in self.asked):.0f} ms" if self.asked else ""
        first, whole = shown([one.first for one in self.asked]), shown([one.whole for one in self.asked])
        requests = len(self.asked) + len(self.errors)
        return f"{requests} | {len(self.errors)} | {self.tokens} | {self.tokens / self.took:.1f} | {first} | {between} | {whole}"


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def said(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file with a chat template")
    parser.add_argument("--tune", type=Path, default=ROOT / "target/release/tune", help="the program `tune` or `tune-serve`")
    parser.add_argument("--peer", choices=PEERS, default="xllamacpp", help="the server beside ours")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="what `tune serve` computes in")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each server")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--prompt", type=int, default=60, help="words of a question, about")
    parser.add_argument("--max-tokens", type=int, default=128, help="new tokens of an answer")
    args = parser.parse_args()
    for file in (args.model, args.tune):
        if not file.is_file():
            parser.error(f"there is no file {file}")
    try:
        peer = f"{args.peer} {importlib.metadata.version(args.peer)}"
    except importlib.metadata.PackageNotFoundError:
        parser.error(f"the package {args.peer} is not installed")
    version = said(args.tune.resolve(), "--version").split()[-1]
    servers = {f"tune serve {version}": (ours, {"ignore_eos": True}), peer: PEERS[args.peer]}
    every = {"model": "model", "max_tokens": args.max_tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}

    print(f"# {processor()}, {os.cpu_count()} cores: {args.clients} clients at once\n")
    print(f"{datetime.date.today()}. Commit {said('git', 'rev-parse', '--short=10', 'HEAD')}, {peer}, Python {platform.python_version()}; "
          f"{args.model.name}, {args.threads} threads, `tune serve` in {args.dtype}; {args.clients} clients with {args.requests} requests "
          f"each, answers of {args.max_tokens} tokens. Made by\n\n    python {shlex.join(sys.argv)}\n")
    print("| round | server | requests | errors | new tokens | tokens/s | first token: median (p95) | between tokens | answer: median (p95) |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    rounds = {name: [] for name in servers}
    for number in range(1, args.rounds + 1):
        for name, (start, fields) in servers.items():
            with Running(name, start, args, every | fields) as port:
                done = Round(port, args, every | fields)
            rounds[name].append(done)
            print(f"| {number} | {name} | {done.row()} |", flush=True)
    print()
    speeds = []
    for name, all_rounds in rounds.items():
        speeds.append(sum(one.tokens for one in all_rounds) / sum(one.took for one in all_rounds))
        short = sum(one.tokens != args.max_tokens for done in all_rounds for one in done.asked)
        if short:
            print(f"{short} answers of {name} have another number of tokens than was asked for.")
        for error in sorted({error for done in all_rounds for error in done.errors}):
            print(f"An error of {name}: {error}")
    print(f"Over all rounds tune serve makes {speeds[0] / speeds[1]:.2f} times the tokens a second of {args.peer}.")


main()
