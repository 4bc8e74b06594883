"""Draws docs/run.svg: what the README's first command prints. Needs the package rich.

    cargo run -p recipes --bin lora -- --config configs/lora/tiny.yaml overwrite=true 2>&1 | python docs/run.py
"""

import io
import re
import sys

from rich.console import Console
from rich.text import Text

COMMAND = "cargo run -p recipes --bin lora -- --config configs/lora/tiny.yaml"

lines = []
for line in sys.stdin.read().replace("\r", "\n").splitlines():
    line = line.rstrip()
    if line.lstrip().startswith(("Compiling", "Finished", "Running", "Blocking")):
        continue
    # A few of the steps are enough.
    if line.startswith("step ") and int(line.split()[1].split("/")[0]) % 100:
        continue
    lines.append(line)

console = Console(record=True, width=112, file=io.StringIO(), force_terminal=True)
console.print(Text("$ " + COMMAND, style="bold"))
for line in lines:
    console.print(Text(line))
# Without the fonts that it would fetch.
picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="lora"), flags=re.DOTALL)
with open("docs/run.svg", "w") as file:
    file.write(picture)
