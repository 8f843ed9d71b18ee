#!/usr/bin/env bash
# Makes the environment if missing, then lints, checks types and runs the tests. Works from any folder;
# arguments go to pytest, for example: scripts/test.sh tests/data -k cache
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment test

# Tests are one process with small tensors: more threads than this make them slower, not faster.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

ruff check .
mypy
python -m pytest "$@"
