#!/bin/sh
# Checks and measures CUDA on this machine: sh run.sh prints a report of under 10,000 characters and fails where something is
# wrong. sh run.sh training does what concerns whole models and training alone, in three minutes. Logs are written to $OUT, if set. Needs a driver and cuBLASLt; uses nvcc, and python3 with PyTorch, where they are.
cd "$(dirname "$0")" || exit 1
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
failed=0

# step NAME SECONDS LINES COMMAND...: runs a command for so long at most; shows the last lines of its output.
step() {
    name=$1 seconds=$2 lines=$3
    shift 3
    echo "== $name"
    begun=$(date +%s)
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
    code=$?
    tail -n "$lines" "$out/$name.log" | cut -c -220
    [ $code -eq 0 ] || { echo "$name: exit code $code after $(($(date +%s) - begun)) s"; failed=1; }
}

# The tests of the kernels alone, without the program around them.
kernels() {
    cd cuda || return 1
    OUT_DIR="$out/kernels" && export OUT_DIR && mkdir -p "$OUT_DIR"
    sh harness/card.sh >"$out/kernels-all.log" 2>&1
    code=$?
    echo "$(grep -c bound "$out/kernels-all.log") outputs compared; what is wrong:"
    grep -v -e bound -e '^==' "$out/kernels-all.log" | head -12
    return $code
}

# The harness's own timing.
speed() {
    cd cuda || return 1
    for source in harness/speed/*.cu; do
        nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -I kernels/ptx -I kernels "$source" \
            -o "$out/$(basename "$source" .cu)" >"$out/nvcc-$(basename "$source").log" 2>&1 &
    done
    wait
    for source in harness/speed/*.cu; do
        "$out/$(basename "$source" .cu)" || return 1
    done
}

# Runs that are killed and go on.
resume() {
    sh resume.sh lora "$out/lora" dtype=bf16 model.lora_dropout=0.1 '~exact_match' && sh resume.sh full "$out/full" dtype=bf16
}

# The memory of the card in use, as the driver says it, while a step runs.
watched() {
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$out/memory.log" 2>/dev/null &
    sampler=$!
    step "$@"
    kill $sampler
    echo "  most memory in use, as the driver says: $(sort -n "$out/memory.log" | tail -1) MiB"
}

# What concerns whole models and training.
training() {
    step steps 40 5 ./card steps:: --nocapture --test-threads=1
    watched speed-of-adapters 45 36 ./card adapters_of_large_models --nocapture --ignored
    watched speed-of-a-model 45 29 ./card all_of_a_large_model --nocapture --ignored
    watched speed-of-8b 60 17 ./card adapters_of_an_8b_model --nocapture --ignored
    if command -v python3 >/dev/null && python3 -c 'import peft' 2>/dev/null; then
        step peers-of-models 100 8 python3 models.py 1.7 1.5 8 0.6
    fi
    step resume 40 2 sh run.sh resume
    step models 40 30 ./card gradients:: --nocapture --test-threads=1
    if command -v compute-sanitizer >/dev/null; then
        step memcheck-of-steps 60 3 compute-sanitizer --tool memcheck --error-exitcode 9 ./card steps::norms --test-threads=1
        step memcheck-of-experts 60 3 env TUNE_TEST_FAMILIES=qwen3_moe compute-sanitizer --tool memcheck --error-exitcode 9 \
            ./card gradients::full --test-threads=1
    fi
}

case ${1:-all} in
    kernels) kernels; exit ;;
    speed) speed; exit ;;
    resume) resume; exit ;;
esac
export out
# Where the tests find their fixtures, from here.
CARGO_MANIFEST_DIR="$PWD/cuda" TUNE_TEST_CARD=1 && export CARGO_MANIFEST_DIR TUNE_TEST_CARD
if [ "${1:-}" = training ]; then
    {
        ./tune doctor
        training
        echo "failed: $failed"
    } >"$out/report.txt" 2>&1
    head -c 9900 "$out/report.txt"
    grep -q '^failed: 0' "$out/report.txt"
    exit
fi
{
    nvidia-smi --query-gpu=name,driver_version,memory.used,clocks.sm --format=csv,noheader
    ./tune doctor
    step values 90 60 ./gpu_check values
    training
    step attention-of-warps 40 12 env TUNE_CUDA_UNITS=warps ./gpu_check attention
    step attention-plain 40 12 env TUNE_CUDA_UNITS=none ./gpu_check attention
    step times 60 45 ./gpu_check times
    if command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null; then
        step peers 75 30 python3 peers.py
    fi
    if command -v nvcc >/dev/null; then
        step kernels 90 16 sh run.sh kernels
        step speed 75 50 sh run.sh speed
    fi
    if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck; do
            step $tool 100 6 compute-sanitizer --tool $tool --error-exitcode 9 ./gpu_check small
        done
    fi
    echo "failed: $failed"
} >"$out/report.txt" 2>&1
head -c 9900 "$out/report.txt"
grep -q '^failed: 0' "$out/report.txt"
