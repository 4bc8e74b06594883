#!/usr/bin/env bash
# From data to a server, by the commands that README.md and docs/ show: data, check, plan, lora on a GGUF file as it is, eval,
# verify, merge, export, chat and serve.
#
#     tests/story.sh                                     # on the tiny model of this repository; about a minute
#     tests/story.sh MODEL.gguf CHATS.jsonl QUESTIONS.jsonl  # on a model and data of your own, a few steps
#
# Needs target/debug/tune, with the recipes and the server beside it, and python3, which plays the person at the terminal and the
# client of the server. TUNE=PROGRAM names another tune.
set -euo pipefail
cd "$(dirname "$0")/.."

tune=$(realpath "${TUNE:-target/debug/tune}")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
# What `chat` remembers of what was typed is no one's.
export XDG_CACHE_HOME=$place/cache

tune() {
    printf '\n$ tune %s\n' "$*" >&2
    "$tune" "$@"
}

wrong() {
    echo "tests/story.sh: $*" >&2
    exit 1
}

# Says whether the text that a command printed has a part in it.
has() {
    grep -qF -- "$2" "$1" || { cat "$1" >&2; wrong "\`$2\` was expected"; }
}

if [[ $# == 0 ]]; then
    config=lora/tiny base=$place/base.gguf data=$place/chats.jsonl questions=recipes/tiny/data/held_out.jsonl
    # The GGUF file that a person with a small machine has already.
    tune export recipes/tiny/model --type q8_0 --to "$base" >"$place/said"
    head -n 1200 recipes/tiny/data/secret_code.jsonl >"$data"
    settings=(epochs=6 log_every_n_steps=50 '~exact_match')
    question='Write b-a-d-e in the secret code.' answer=c-b-e-f limit=60 share=10
else
    [[ $# == 3 ]] || wrong "expected MODEL.gguf CHATS.jsonl QUESTIONS.jsonl, or nothing"
    config=lora/smollm2_135m base=$(realpath "$1") data=$place/chats.jsonl questions=$(realpath "$3")
    cp "$2" "$data"
    settings=(max_steps_per_epoch=6 gradient_accumulation_steps=2 lr_scheduler.num_warmup_steps=2 dtype=bf16 seed=1)
    question='What is the capital of France?' answer= limit=4 share=3
fi
run=$place/run
settings+=("checkpointer.checkpoint_dir=$base" "dataset.data_files=[$data]" "output_dir=$run")
# A part of the questions says which checkpoint is the best.
settings+=("evaluation={data_file: $questions, split: 'train[:$share%]', max_new_tokens: 24}" "samples.prompts=[$question]"
    checkpointer.keep_best=true checkpointer.best_by="$(basename "$questions" .jsonl)/answer_perplexity")

# ---- data: a mistake is found before anything is read of the model -------------------------------------------------------
cp "$data" "$place/right.jsonl"
printf '{"messages": [{"role": "user", "content": "And this one?"}]\n' >>"$data"
if tune check lora --config "$config" "${settings[@]}" >"$place/said" 2>&1; then
    wrong "a broken line was not found"
fi
has "$place/said" "chats.jsonl:$(wc -l <"$data")"
mv "$place/right.jsonl" "$data"

# ---- check, plan, train ---------------------------------------------------------------------------------------------------
tune check lora --config "$config" "${settings[@]}" | tee "$place/said"
has "$place/said" 'Nothing stands in the way of this run'
tune plan lora --config "$config" "${settings[@]}" | tee "$place/said"
tune run lora --config "$config" "${settings[@]}" 2>&1 | tee "$place/said"
has "$place/said" 'held quantized'
has "$place/said" 'Adapter saved to'
has "$place/said" "/answer_perplexity"

# ---- is it better than its base? -------------------------------------------------------------------------------------------
tune eval "$run" "$questions" --limit "$limit" --page "$place/page.html" --results "$place/results.jsonl" | tee "$place/said"
has "$place/said" 'compared with'
has "$place/page.html" '<!doctype html>'
python3 tests/python/story.py better "$place/results.jsonl"

# ---- hand it on: each file is compared with what was trained before it gets its name ---------------------------------------
tune merge "$run" --to "$place/merged"
tune verify "$place/merged"
tune export "$run" --merged --type q8_0 --to "$place/tuned.gguf"
tune export "$run" --to "$place/adapter.gguf"
tune quantize "$place/tuned.gguf" --type q4_0 --to "$place/small.gguf"
tune verify "$place/tuned.gguf"
tune verify "$place/adapter.gguf"
has "$place/tuned.Modelfile" 'FROM ./tuned.gguf'
python3 tests/python/story.py damage "$place/small.gguf"
if tune verify "$place/small.gguf" >"$place/said" 2>&1; then
    wrong "a damaged file was not found"
fi
has "$place/said" 'checksum'

# ---- talk to it, and serve it ----------------------------------------------------------------------------------------------
for model in "$run" "$place/merged" "$place/tuned.gguf"; do
    python3 tests/python/story.py chat "$question" "$answer" "$tune" chat "$model" --temperature 0 --max-new-tokens 24
done
python3 tests/python/story.py serve "$question" "$answer" "$tune" serve "$run" --also "adapter=$run" --port 0
printf '\nThe story holds (%d s)\n' "$SECONDS"
