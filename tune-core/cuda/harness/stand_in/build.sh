#!/bin/sh
# Builds a driver, a cuBLASLt, an NCCL and kernels that run without a card: harness/stand_in/build.sh FOLDER. A program finds them with
# LD_LIBRARY_PATH=FOLDER TUNE_CUDA_LIBRARIES=FOLDER TUNE_CUDA_UNITS=none. CXX: the compiler (g++).
# Kernels for matrix units are left out: they take long to build, and others stand in for them.
set -eu
to=$1
cd "$(dirname "$0")/../.."
mkdir -p "$to"
build="${CXX:-g++} -std=c++17 -O2 -shared -fPIC -U_FORTIFY_SOURCE -fvisibility=hidden -fno-gnu-unique -Wall -Wno-unknown-pragmas"
pids=
for module in attention_decode attention_plain columns dequantize distillation dropout experts fake_blocks fake_quant gate general_distillation grouped loss norm optim optim_8bit optim_means rotary routes rows sample token_columns top_middle; do
    {
        echo '#include "harness/stand_in/kernel.h"'
        echo "#include \"kernels/$module.cu\""
        echo 'KERNELS('
        sed -n "s/^$module: \([a-z0-9_]*\).*/KERNEL(\1)/p" kernels/built/resources.txt
        echo ')'
    } >"$to/$module.cpp"
    $build -I . -I harness/plain -I kernels "$to/$module.cpp" -o "$to/kernels_$module.so" &
    pids="$pids $!"
done
for pid in $pids; do wait "$pid"; done
$build -fvisibility=default harness/stand_in/products.cpp -o "$to/libcublasLt.so.13" -Wl,-soname,libcublasLt.so.13 -ldl
$build -fvisibility=default harness/stand_in/driver.cpp -o "$to/libcuda.so.1" -Wl,-soname,libcuda.so.1 -ldl
$build -fvisibility=default harness/stand_in/collectives.cpp -o "$to/libnccl.so.2" -Wl,-soname,libnccl.so.2
