"""The person at the terminal and the client of the server in tests/story.sh. Needs the standard library.

    story.py better RESULTS.jsonl                  # the tuned model's answers are likelier than its base's
    story.py damage FILE                           # changes a bit of a file
    story.py chat QUESTION ANSWER COMMAND...       # types into a terminal, and reads what comes
    story.py serve QUESTION ANSWER COMMAND...      # asks a server over HTTP, and ends it

With an empty ANSWER, any will do.
"""

import json
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

# Seconds.
PATIENCE = 120


def wrong(what):
    sys.exit(f"tests/python/story.py: {what}")


def better(results):
    """Perplexity of the right answers, over all items, of both models."""
    records = [json.loads(line) for line in Path(results).read_text().splitlines()]
    shown = []
    for model in ("base", "model"):
        parts = [record[model]["metrics"]["answer_perplexity"] for record in records]
        shown.append(math.exp(sum(part[0] for part in parts) / sum(part[1] for part in parts)))
    print(f"perplexity of {len(records)} right answers: {shown[0]:.3f} of the base, {shown[1]:.3f} after training")
    if not shown[1] < shown[0]:
        wrong("training made the model no better")


def damage(file):
    with open(file, "r+b") as opened:
        opened.seek(-9, os.SEEK_END)
        byte = opened.read(1)[0]
        opened.seek(-9, os.SEEK_END)
        opened.write(bytes([byte ^ 4]))


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, command):
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.environ["TERM"] = "xterm"
            os.execvp(command[0], command)
        self.seen = ""

    def wait_for(self, part, since=0):
        """Reads until a text has come, and returns where it ends."""
        end = time.monotonic() + PATIENCE
        while part not in self.seen[since:]:
            if not select.select([self.terminal], [], [], max(0, end - time.monotonic()))[0]:
                wrong(f"{part!r} did not come: {self.seen!r}")
            try:
                read = os.read(self.terminal, 4096)
            except OSError:
                read = b""
            if not read:
                wrong(f"the terminal was closed before {part!r} came: {self.seen!r}")
            self.seen += read.decode(errors="replace")
        return self.seen.index(part, since) + len(part)

    def type(self, text):
        os.write(self.terminal, text.encode())

    def end(self):
        """The exit code."""
        while True:
            try:
                if not os.read(self.terminal, 4096):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def chat(question, answer, command):
    terminal = Terminal(command)
    place = terminal.wait_for("> ")
    # A slip, corrected with the key for it; then the same once more.
    for typed in (question + "x\x7f", "/regenerate"):
        terminal.type(typed + "\r")
        place = terminal.wait_for("\n", place)
        if answer:
            place = terminal.wait_for(answer, place)
        place = terminal.wait_for(" tokens a second", place)
        place = terminal.wait_for("> ", place)
    terminal.type("/quit\r")
    code = terminal.end()
    if code != 0:
        wrong(f"chat ended with {code}: {terminal.seen!r}")
    # What was typed is drawn anew at each key.
    lines = [line for line in terminal.seen.splitlines() if "\x1b[" not in line]
    print("\n".join([f"$ {' '.join(command)}", *lines]))


def ask(address, body=None):
    request = urllib.request.Request(address, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def serve(question, answer, command):
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        if "http://" not in line:
            wrong(f"the server did not start: {line!r}")
        address = "http://" + line.split("http://")[1].split("/v1")[0] + "/v1"
        names = [model["id"] for model in ask(f"{address}/models")["data"]]
        messages = [{"role": "user", "content": question}]
        for name in names:
            said = ask(f"{address}/chat/completions", dict(model=name, messages=messages, temperature=0, max_tokens=24))
            text = said["choices"][0]["message"]["content"]
            print(f"{name} answers over HTTP: {text}")
            if answer and text != answer:
                wrong(f"{name} answers {text!r}, and {answer!r} was expected")
        if len(names) != 2 or "adapter" not in names:
            wrong(f"the server has {names}")
        try:
            ask(f"{address}/chat/completions", dict(model="nobody", messages=messages))
            wrong("a model that is not there answered")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                wrong(f"a model that is not there is answered with {error.code}")
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=PATIENCE)
        if code != 0:
            wrong(f"the server ended with {code} on SIGTERM")
    finally:
        server.kill()


def main():
    match sys.argv[1:]:
        case ["better", results]:
            better(results)
        case ["damage", file]:
            damage(file)
        case ["chat", question, answer, *command]:
            chat(question, answer, command)
        case ["serve", question, answer, *command]:
            serve(question, answer, command)
        case _:
            wrong(__doc__)


main()
