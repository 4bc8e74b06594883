"""Draws docs/run.svg: what the README's first command prints. Needs the package rich.

    cargo run -p recipes --bin lora -- --config configs/lora/tiny.yaml overwrite=true 2>&1 | python docs/run.py
"""

import io
import sys

from rich.console import Console
from rich.text import Text

COMMAND = "cargo run -p recipes --bin lora -- --config configs/lora/tiny.yaml"

lines = []
for line in sys.stdin.read().replace("\r", "\n").splitlines():
    line = line.rstrip()
    if line.lstrip().startswith(("Compiling", "Finished", "Running", "Blocking")):
        continue
    lines.append(line)

console = Console(record=True, width=112, file=io.StringIO(), force_terminal=True)
console.print(Text("$ " + COMMAND, style="bold"))
for line in lines:
    console.print(Text(line))
console.save_svg("docs/run.svg", title="lora")
