#!/bin/sh
# Checks and measures CUDA on this machine: sh run.sh prints a report of under 10,000 characters within 8 minutes, and fails where
# something is wrong or was not checked. sh run.sh checks leaves out what is measured alone; sh run.sh training does what concerns
# whole models and training alone, in three minutes. Logs are written to $OUT, if set. Needs a driver, cuBLASLt and NCCL; uses nvcc,
# compute-sanitizer, and python3 with PyTorch, where they are.
cd "$(dirname "$0")" || exit 1
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
started=$(date +%s)
# Seconds that all of it may take.
limit=${LIMIT:-470}
measures=

# step NAME SECONDS LINES COMMAND...: runs a command for so long at most; shows the last lines of its output.
step() {
    name=$1 seconds=$2 lines=$3
    shift 3
    echo "== $name"
    begun=$(date +%s)
    left=$((limit - (begun - started)))
    if [ $left -lt 5 ]; then
        echo "$name: not run, for there is no time left"
        echo "$name" >>"$out/failed"
        return
    fi
    [ $left -ge "$seconds" ] || seconds=$left
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
    code=$?
    tail -n "$lines" "$out/$name.log" | cut -c -200
    [ $code -eq 0 ] && return
    echo "$name: exit code $code after $(($(date +%s) - begun)) s"
    # What is measured may take too long.
    [ $code -eq 124 ] && [ -n "$measures" ] || echo "$name" >>"$out/failed"
}

# What is measured: where there is no time left, or too little, that is said, and nothing is wrong.
measure() {
    if [ $((limit - ($(date +%s) - started))) -lt 20 ]; then echo "== $1: not run, for there is no time left"; return; fi
    measures=yes
    step "$@"
    measures=
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

# Every recipe on the card beside the same run on the processor, and runs that are killed and go on.
recipes() {
    name=$(echo "$*" | tr -cd a-z)
    ./recipes_on_cards --nocapture --test-threads=1 "$@" >"$out/recipes-$name.log" 2>&1
    code=$?
    sed -n 's/^.*on a card: //p' "$out/recipes-$name.log"
    [ $code -eq 0 ] || grep -A 12 -e 'failures:$' -e panicked "$out/recipes-$name.log" | head -30
    return $code
}

# The memory of the card in use, as the driver says it, while a step runs.
watched() {
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$out/memory.log" 2>/dev/null &
    sampler=$!
    measure "$@"
    kill $sampler
    echo "  most memory in use, as the driver says: $(sort -n "$out/memory.log" | tail -1) MiB"
}

# What is right, in parts that are checked side by side: a check waits more than it computes.
operations() {
    step values 90 60 ./gpu_check values
    step attention-of-warps 40 3 env TUNE_CUDA_UNITS=warps ./gpu_check attention
    step collectives 40 3 ./gpu_check collectives
    step attention-plain 40 3 env TUNE_CUDA_UNITS=none ./gpu_check attention
}

sources() {
    command -v nvcc >/dev/null && step kernels 120 16 sh run.sh kernels
}

sanitizers() {
    command -v compute-sanitizer >/dev/null || return
    for tool in memcheck racecheck; do
        step $tool 60 2 compute-sanitizer --tool $tool --error-exitcode 9 ./gpu_check small
    done
    step memcheck-of-steps 40 1 compute-sanitizer --tool memcheck --error-exitcode 9 ./card steps::norms --test-threads=1
    step memcheck-of-blocks 40 1 compute-sanitizer --tool memcheck --error-exitcode 9 ./card quantized::every --test-threads=1
    step memcheck-of-experts 40 1 env TUNE_TEST_FAMILIES=qwen3_moe compute-sanitizer --tool memcheck --error-exitcode 9 \
        ./card gradients::full --test-threads=1
    step memcheck-of-grouped 40 1 compute-sanitizer --tool memcheck --error-exitcode 9 ./card experts::all --test-threads=1
}

models() {
    step models 60 30 ./card gradients:: --nocapture --test-threads=1
    step methods 30 20 ./card methods:: --nocapture --test-threads=1
    step fake-quantization 30 12 ./card fake_quantization:: --nocapture --test-threads=1
    step steps 40 5 ./card steps:: --nocapture --test-threads=1
    step streams 20 5 ./card streams:: --nocapture --test-threads=1
    step graphs 30 24 ./card graphs:: --nocapture --test-threads=1
    step experts 20 8 ./card experts:: --nocapture --test-threads=1
    step drawn 20 5 ./card drawn:: --nocapture --test-threads=1
    step blocks 30 40 ./card quantized:: --nocapture --test-threads=1
}

recipes_part() {
    step recipes 90 50 sh run.sh recipes --skip killed
}

killed_part() {
    step killed 110 14 sh run.sh recipes killed::a_killed
}

checks() {
    for part in operations sources sanitizers models recipes_part killed_part; do
        $part >"$out/part-$part.txt" 2>&1 &
    done
    wait
    for part in operations sources sanitizers models recipes_part killed_part; do cat "$out/part-$part.txt"; done
}

# Whole models and training: how fast.
training() {
    watched speed-of-adapters 60 41 ./card adapters_of_large_models --nocapture --ignored
    watched speed-of-a-model 45 29 ./card all_of_a_large_model --nocapture --ignored
    watched speed-of-8b 60 17 ./card adapters_of_an_8b_model --nocapture --ignored
    watched speed-of-8b-in-nf4 60 17 ./card an_8b_model_in_normal_floats --nocapture --ignored
    watched speed-of-8b-in-q4_k 45 17 ./card an_8b_model_in_q4_k --nocapture --ignored
    if command -v python3 >/dev/null && python3 -c 'import peft' 2>/dev/null; then
        measure peers-of-models 100 8 python3 models.py 1.7 1.5 8 0.6
    fi
}

timing() {
    measure times 60 50 ./gpu_check times
    if command -v python3 >/dev/null && python3 -c 'import torch' 2>/dev/null; then
        measure peers 75 30 python3 peers.py
    fi
    if command -v nvcc >/dev/null; then
        measure speed 75 50 sh run.sh speed
    fi
}

case ${1:-all} in
    kernels) kernels; exit ;;
    speed) speed; exit ;;
    recipes) shift; recipes "$@"; exit ;;
    all) what="checks training timing" ;;
    checks) what=checks ;;
    training) what="models training" ;;
    *) echo "sh run.sh [all | checks | training]"; exit 2 ;;
esac
# A line for each step that went wrong.
: >"$out/failed"
OUT=$out && export out OUT
# Where the tests find their fixtures, from here.
CARGO_MANIFEST_DIR="$PWD/cuda" TUNE_TEST_CARD=1 && export CARGO_MANIFEST_DIR TUNE_TEST_CARD
{
    nvidia-smi --query-gpu=name,driver_version,memory.used,clocks.sm --format=csv,noheader
    ./tune doctor
    for part in $what; do $part; done
    echo "failed: $(wc -l <"$out/failed"), after $(($(date +%s) - started)) s"
} >"$out/report.txt" 2>&1
# What is at the end says whether all is well.
head -c 9700 "$out/report.txt"
[ "$(wc -c <"$out/report.txt")" -le 9700 ] || { echo; echo "..."; tail -1 "$out/report.txt"; }
tail -1 "$out/report.txt" | grep -q '^failed: 0,'
