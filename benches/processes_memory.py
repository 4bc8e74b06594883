"""Compares the memory of each of several processes with what was planned, and with the least that could be hoped for.

    cargo build --release -p recipes --features mpi --bins
    python benches/processes_memory.py --processes 1,2,4 --recipe full \\
        --config configs/full/smollm2_135m.yaml checkpointer.checkpoint_dir=MODEL dataset.data_files=[DATA.jsonl]

Everything behind `--config FILE` goes to the recipe. Three steps are trained, and nothing of them is kept. Each process is watched on its own:
`peak` is the largest resident set of any of them, mapped files included. `planned` is what `tune plan --world-size N` says. `bound` is a
process's share of weights, gradients and optimizer state, and whole: two blocks that are gathered, activations, and the program
itself; its parts are those that the plan names.
"""

import argparse
import json
import pathlib
import re
import resource
import subprocess
import sys
import tempfile

UNITS = {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024}
DIVIDED = {"weights", "gradients", "optimizer state"}
WHOLE = {"program, tokenizer, data", "activations", "output layer and loss"}


def watched(record, command):
    """Runs one process's program, and writes down the most memory that it held, in MiB."""
    code = subprocess.run(command).returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    with tempfile.NamedTemporaryFile("w", dir=record, suffix=".json", delete=False) as file:
        json.dump(peak, file)
    return code


def plan(tune, processes, told):
    """The parts that `tune plan` names, in MiB."""
    command = [tune, "plan", "--world-size", str(processes), *told]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode:
        sys.exit(said.stderr)
    lines = re.findall(r"^  (\S.*?) {2,}([\d.]+) ([KMG]iB)", said.stdout, re.MULTILINE)
    return {name: float(number) * UNITS[unit] for name, number, unit in lines}


def peak(program, processes, told, mpirun):
    """The most memory that one of the processes held, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, __file__, "--watch", folder, program, "--config", *told]
        ours += [f"output_dir={folder}/out", "epochs=1", "max_steps_per_epoch=3"]
        command = ours if processes == 1 else [*mpirun.split(), "-n", str(processes), *ours]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            sys.exit(said.stderr[-4000:])
        peaks = [json.loads(path.read_text()) for path in pathlib.Path(folder).glob("*.json")]
    assert len(peaks) == processes, f"{len(peaks)} of {processes} processes were watched"
    return max(peaks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes")
    parser.add_argument("--recipe", default="full")
    parser.add_argument("--programs", default="target/release", help="folder of the recipes and of tune")
    parser.add_argument("--mpirun", default="mpirun --oversubscribe --bind-to none", help="what starts processes")
    parser.add_argument("--config", required=True)
    args, overrides = parser.parse_known_args()
    told = [args.config, *overrides]
    program, tune = f"{args.programs}/{args.recipe}", f"{args.programs}/tune"

    print("| processes | peak of one | planned | off | bound | peak / bound |\n|--:|--:|--:|--:|--:|--:|")
    whole = plan(tune, 1, [args.recipe, "--config", *told])
    for processes in map(int, args.processes.split(",")):
        planned = whole if processes == 1 else plan(tune, processes, [args.recipe, "--config", *told])
        bound = sum(whole.get(name, 0) for name in DIVIDED) / processes
        bound += sum(whole.get(name, 0) for name in WHOLE) + planned.get("gathered weights", 0)
        taken = peak(program, processes, told, args.mpirun)
        off = 100 * (planned["peak"] / taken - 1)
        print(
            f"| {processes} | {taken:.0f} MiB | {planned['peak']:.0f} MiB | {off:+.1f} % | {bound:.0f} MiB "
            f"| {taken / bound:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        sys.exit(watched(sys.argv[2], sys.argv[3:]))
    main()
