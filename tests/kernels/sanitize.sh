#!/usr/bin/env bash
# Runs the kernels' tests with kernels compiled for the address and undefined-behaviour sanitizers.
#
#   tests/kernels/sanitize.sh [PYTHON] [ARGUMENT OF PYTEST ...]
#
# A g++ of the same name comes first in PATH and adds the flags, so that the code under test is built as always. Checks in
# optimised code take minutes to compile for each of the large sources, so that nothing is optimised here: 15 seconds for
# all of them, and no access is removed before it is checked.
#
# Every kernel runs in every format, on one thread and on two. Three and four threads add no other code. The tests of the
# build itself are left out, because they compile all sources again and compare no results.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
scratch=$(mktemp -d)
# pytest keeps what a test prints, and an abort ends pytest, so that the reports go to files.
trap 'cat "$scratch"/report.* >&2 2>/dev/null || true; rm -rf "$scratch"' EXIT
compiler=$(command -v g++)
cat > "$scratch/g++" <<WRAPPER
#!/bin/sh
exec $compiler "\$@" -O0 -g1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
WRAPPER
chmod +x "$scratch/g++"
# The interpreter is not built with the sanitizer, so its library comes first; Python's own leaks are not our subject.
export PATH="$scratch:$PATH" XDG_CACHE_HOME="$scratch/cache"
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libubsan.so)"
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:log_path=$scratch/report" \
    UBSAN_OPTIONS="print_stacktrace=1:log_path=$scratch/report"
"$python" -m pytest tests/kernels -q -p no:cacheprovider --ignore tests/kernels/cpu/test_build.py \
    --ignore tests/kernels/cpu/test_table_of_operations.py -k 'not native-3 and not 3-threads and not 4-threads' "${@:2}"
