#!/usr/bin/env bash
# Makes the environment if missing, then lints, checks types and runs the tests. Works from any folder;
# arguments go to pytest, for example: scripts/test.sh tests/data -k cache
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment test

# Small tensors: a second thread costs more in waiting than it computes, above all beside other work.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

ruff check .
mypy
python -m pytest "$@"
