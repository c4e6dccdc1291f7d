#!/bin/sh
# On a machine with a CUDA device, from the repository's root: parity, split and speed there, in under eight minutes.
# PYTHON: the interpreter that the project is installed for. Further words go to `python -m experiments.support.gpu_check`.
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
PYTHONPATH="$PWD" exec timeout 480 "$PYTHON" -m experiments.support.gpu_check --device cuda "$@"
