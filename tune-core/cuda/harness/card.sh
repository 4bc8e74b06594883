#!/bin/sh
# Builds the kernels' tests with nvcc and runs them on the first card: harness/card.sh [test ...].
# ARCH: the card's architecture (90a). Prints a line for each kernel, and fails if one is wrong.
set -u
cd "$(dirname "$0")/.."
out=${OUT_DIR:-$(mktemp -d)}
tests=${*:-$(cd harness/tests && ls *.cpp | sed 's/\.cpp$//')}
arch=${ARCH:-90a}
for t in $tests; do
    nvcc -std=c++17 -O3 "-gencode=arch=compute_$arch,code=sm_$arch" -I kernels/ptx -I kernels -x cu "harness/tests/$t.cpp" \
        -o "$out/$t" >"$out/$t.log" 2>&1 &
done
wait
failed=0
for t in $tests; do
    echo "== $t"
    if [ -x "$out/$t" ]; then "$out/$t" || failed=1; else tail -5 "$out/$t.log"; failed=1; fi
done
exit $failed
