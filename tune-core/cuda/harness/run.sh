#!/bin/sh
# Builds and runs the kernels' tests without a card: harness/run.sh [test ...], in the folder of this crate.
# CXX: the compiler (g++).
set -eu
cd "$(dirname "$0")/.."
out=${OUT_DIR:-$(mktemp -d)}
tests=${*:-$(cd harness/tests && ls *.cpp | sed 's/\.cpp$//')}
failed=0
for t in $tests; do
    "${CXX:-g++}" -std=c++17 -O2 -U_FORTIFY_SOURCE -ftrivial-auto-var-init=pattern -Wall -Wno-unknown-pragmas \
        -I harness/plain -I kernels "harness/tests/$t.cpp" -o "$out/$t"
    echo "== $t"
    "$out/$t" || failed=1
done
exit $failed
