#!/usr/bin/env bash
# Runs the kernels' tests with kernels compiled for aarch64, which qemu-aarch64 runs on any machine.
#
#   tests/kernels/aarch64/run.sh PROCESSOR [ARGUMENT OF PYTEST ...]
#
# PROCESSOR is a -march of GCC: armv8-a, armv8.2-a+dotprod or armv8.2-a+i8mm. Python and torch run on this machine's own
# processor; every native function runs in the guest, on the same memory. Left out: the tests of the build and of the
# system's memory, the products of bfloat16, which these processors do not offer, and the runs on three threads, which add
# no code. A second -k takes the place of that choice.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
processor=$1
here=tests/kernels/aarch64
native=src/manylora/kernels/cpu/native
scratch=$(mktemp -d)
heap=$scratch/heap
trap 'rm -rf "$scratch"' EXIT
truncate -s 64G "$heap" # sparse
# As a builtin, `calloc` would become a call of itself.
gcc -O2 -fno-builtin -shared -fPIC -pthread "$here/shared_heap.c" -o "$scratch/heap.so"
KERNELS_HEADERS=$scratch "$python" -m tests.kernels.aarch64.forwarding
flags=(-std=c++17 -O2 "-march=$processor" -ffp-contract=off -fno-math-errno -pthread)
find "$native/src" "$here/guest.cpp" -name '*.cpp' -print0 |
    xargs -0 -P 2 -I{} sh -c 'aarch64-linux-gnu-g++ "$@" -c {} -o "$0/$(basename {}).o"' \
        "$scratch" "${flags[@]}" -I "$native/include" -I "$scratch" -I "$here"
aarch64-linux-gnu-g++ -static -pthread "$scratch"/*.o -o "$scratch/guest"
export PYTHONMALLOC=malloc KERNELS_HEAP=$heap KERNELS_GUEST="qemu-aarch64 -cpu max $scratch/guest $heap"
LD_PRELOAD=$scratch/heap.so "$python" -m pytest tests/kernels -q -p no:cacheprovider -p tests.kernels.aarch64.forwarding \
    --ignore tests/kernels/cuda --ignore tests/kernels/cpu/test_build.py --ignore tests/kernels/cpu/test_kv_memory.py \
    --ignore tests/kernels/cpu/test_table_of_operations.py --ignore tests/kernels/cpu/test_bf16.py \
    -k 'not native-3 and not 3-threads and not 4-threads' "${@:2}"
