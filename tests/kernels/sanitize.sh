#!/usr/bin/env bash
# Runs the kernels' tests with kernels compiled for the address and undefined-behaviour sanitizers.
#
#   tests/kernels/sanitize.sh [PYTHON]
#
# A g++ of the same name comes first in PATH and adds the flags, so that the code under test is built as always.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-.venv/bin/python}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
compiler=$(command -v g++)
cat > "$scratch/g++" <<WRAPPER
#!/bin/sh
exec $compiler -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g "\$@"
WRAPPER
chmod +x "$scratch/g++"
# The interpreter is not built with the sanitizer, so its library comes first; Python's own leaks are not our subject.
export PATH="$scratch:$PATH" XDG_CACHE_HOME="$scratch/cache"
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libubsan.so)"
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1
"$python" -m pytest tests/kernels -q -p no:cacheprovider --timeout 3000 "${@:2}"
