"""Compares `tune eval`, `tune serve` and the recipe `eleuther_eval` with EleutherAI's harness on transformers: the same items, the
same numbers.

    python tests/python/check_lm_eval.py TUNE [MODEL]

TUNE is the program `tune`; MODEL a Hugging Face folder, by default the tiny model. Two local tasks are made (nothing is
downloaded): multiple choice, and whole texts. For each item the harness's log-likelihoods on transformers (fp32, CPU) must be
those of `tune eval --no-chat-template`, and its accuracies, too. Then the harness asks `tune serve MODEL` for the same, by
`/v1/completions` with `echo` and `logprobs`. Last, the recipe starts server and harness itself, several items at a time, and its table has
the metrics; answers to the task of `configs/eleuther_eval/tiny.yaml` are compared, too.

Needs lm_eval[api], torch and transformers; `eleuther_eval` and `tune-serve` are beside TUNE.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NEAR = 2e-3

CHOICE = """task: local_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_bytes
"""

TEXT = """task: local_text
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


def items(folder):
    """Two files of items, the same in every run."""
    draw = random.Random(5)
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = lambda: "-".join(draw.choices(letters, k=draw.randint(2, 6)))  # noqa: E731
    choice = folder / "choice.jsonl"
    with choice.open("w") as out:
        for _ in range(40):
            choices = [f" {word()}{tail}" for tail in ("", " and more", "!", " é")]
            record = {"prompt": f"Write {word()} in the secret code.", "choices": choices, "answer": draw.randrange(4)}
            out.write(json.dumps(record) + "\n")
    text = folder / "text.jsonl"
    with text.open("w") as out:
        for n in (1, 4, 9, 60):
            out.write(json.dumps({"text": " ".join(f"{word()}." for _ in range(n)) + " Grüße"}) + "\n")
    (folder / "choice.yaml").write_text(CHOICE.format(file=choice))
    (folder / "text.yaml").write_text(TEXT.format(file=text))
    return choice, text


def numbers(sample):
    """The log-likelihoods of an item."""
    first = lambda answer: answer[0] if isinstance(answer, (list, tuple)) else answer  # noqa: E731
    return [float(first(answer)) for answer in sample["filtered_resps"]]


def evaluated(folder, model, arguments, tasks, **more):
    """What the harness made of each item, by task, and the metrics."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, model_args=arguments, tasks=list(tasks), batch_size=1, task_manager=manager,
                                    log_samples=True, bootstrap_iters=0, cache_requests=False, **more)
    samples = {task: sorted(found["samples"][task], key=lambda sample: sample["doc_id"]) for task in found["samples"]}
    return samples, found["results"]


def harness(folder, model, arguments, tasks=("local_choice", "local_text")):
    """Log-likelihoods by task and item, and the metrics, by the harness."""
    samples, metrics = evaluated(folder, model, arguments, tasks)
    return {task: [numbers(sample) for sample in samples[task]] for task in samples}, metrics


def ours(tune, model, folder, tasks):
    results = folder / "results.jsonl"
    command = [tune, "eval", model, *map(str, tasks), "--no-chat-template", "--results", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        sys.exit(done.stderr)
    found = {"local_choice": [], "local_text": []}
    for line in results.read_text().splitlines():
        record = json.loads(line)
        of = record["model"]
        if "choices" in record["record"]:
            found["local_choice"].append((of["log_likelihoods"], of["metrics"]))
        else:
            found["local_text"].append(([-of["metrics"]["bits_per_byte"][0]], of["metrics"]))
    return found


def served(tune, folder, model):
    """Log-likelihoods of the choices and the metrics, by the harness from a server."""
    command = [tune, "serve", model, "--name", "model", "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        if "http://127.0.0.1:" not in line:
            sys.exit(f"check_lm_eval.py: the server did not start: {line!r}")
        address = "http://" + line.split("http://")[1].split("/v1")[0] + "/v1/completions"
        settings = (f"model=model,base_url={address},tokenizer={model},tokenizer_backend=huggingface,"
                    f"num_concurrent=1,max_retries=1,tokenized_requests=False")
        # Whole texts are left out: there, the harness keeps one token for an answer, and so cuts texts elsewhere.
        return harness(folder, "local-completions", settings, ["local_choice"])
    finally:
        server.terminate()
        server.wait(60)


def recipe(tune, folder, name, arguments):
    """What the recipe's harness made of each item, by task, and the metrics, from the files that it leaves."""
    out = folder / name
    program = Path(sys.executable).with_name("lm_eval")
    command = [Path(tune).absolute().with_name("eleuther_eval"), *arguments, f"lm_eval={program}", f"output_dir={out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    table = (out / "eleuther_eval.md").read_text()
    assert table.splitlines()[2].split("|")[1].strip() == "Tasks", table
    (results,) = out.glob("*/results_*.json")
    samples = {}
    for file in out.glob("*/samples_*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        task = file.name.removeprefix("samples_").rsplit("_", 1)[0]
        samples[task] = sorted(lines, key=lambda sample: sample["doc_id"])
    return samples, json.loads(results.read_text())["results"], table


def check_recipe(tune, folder, model):
    """The recipe against the harness on transformers, which reads as many tokens."""
    length = json.loads((Path(model) / "config.json").read_text())["max_position_embeddings"] - 2
    theirs, metrics = harness(folder, "hf", f"pretrained={model},dtype=float32,device=cpu,max_length={length}")
    common = [f"checkpoint_dir={model}", "lm_eval_args=[--log_samples]", "batch_size=4", f"max_seq_length={length}"]
    tasks = ["tasks=[local_choice,local_text]", f"include_path={folder}"]
    samples, found, table = recipe(tune, folder, "scores", [*common, *tasks])
    for task, values in theirs.items():
        for n, (value, sample) in enumerate(zip(values, samples[task], strict=True)):
            mine = numbers(sample)
            assert len(value) == len(mine) and all(map(near, value, mine)), (task, n, value, mine)
    for task, metric in (("local_choice", "acc"), ("local_choice", "acc_bytes"), ("local_text", "bits_per_byte")):
        value = found[task][f"{metric},none"]
        assert near(metrics[task][f"{metric},none"], value) and f"{value:.4f}" in table, (task, metric, metrics[task], table)
    # Answers: the shipped config, which renders the chat template.
    items = ["--config", "configs/eleuther_eval/tiny.yaml", f"checkpoint_dir={model}", "limit=12"]
    mine, found, _ = recipe(tune, folder, "answers", [*items, "lm_eval_args=[--apply_chat_template,--log_samples]"])
    theirs, metrics = evaluated(ROOT / "recipes/tiny/tasks", "hf", f"pretrained={model},dtype=float32,device=cpu",
                                ["secret_code"], apply_chat_template=True, limit=12)
    answers = lambda samples: [sample["filtered_resps"] for sample in samples["secret_code"]]  # noqa: E731
    assert answers(theirs) == answers(mine), (answers(theirs), answers(mine))
    assert near(metrics["secret_code"]["exact_match,none"], found["secret_code"]["exact_match,none"])
    print(f"eleuther_eval: all items, metrics and {len(answers(mine))} answers as on transformers")


def near(a, b):
    return math.isclose(a, b, abs_tol=NEAR, rel_tol=1e-4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tune")
    parser.add_argument("model", nargs="?", default=str(ROOT / "recipes/tiny/model"))
    arguments = parser.parse_args()
    # Where the data of shipped tasks are found.
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tasks = items(folder)
        theirs, metrics = harness(folder, "hf", f"pretrained={arguments.model},dtype=float32,device=cpu")
        mine = ours(arguments.tune, arguments.model, folder, tasks)
        for task, values in theirs.items():
            assert len(values) == len(mine[task]) > 0
            for n, (value, (found, _)) in enumerate(zip(values, mine[task])):
                assert len(value) == len(found) and all(map(near, value, found)), (task, n, value, found)
        share = lambda name: sum(m[name][0] for _, m in mine["local_choice"]) / len(mine["local_choice"])  # noqa: E731
        assert near(metrics["local_choice"]["acc,none"], share("choice")), metrics
        assert near(metrics["local_choice"]["acc_bytes,none"], share("choice_per_byte")), metrics
        texts = [m["bits_per_byte"] for _, m in mine["local_text"]]
        bits = sum(sum_ for sum_, _ in texts) / sum(size for _, size in texts) / math.log(2)
        assert near(metrics["local_text"]["bits_per_byte,none"], bits), (metrics, bits)
        print(f"tune eval: {sum(map(len, theirs['local_choice']))} choices and {len(theirs['local_text'])} texts as on transformers")
        found, of_server = served(arguments.tune, folder, arguments.model)
        for n, (value, answer) in enumerate(zip(theirs["local_choice"], found["local_choice"], strict=True)):
            assert len(value) == len(answer) and all(map(near, value, answer)), (n, value, answer)
        assert near(metrics["local_choice"]["acc,none"], of_server["local_choice"]["acc,none"])
        print("tune serve: the choices as on transformers")
        check_recipe(arguments.tune, folder, arguments.model)


if __name__ == "__main__":
    main()
