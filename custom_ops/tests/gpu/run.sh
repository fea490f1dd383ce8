#!/usr/bin/env bash
# Builds the CUDA kernels of RMSNorm with nvcc, compares them with float64 on a GPU, and times them and those of other libraries.
# Needs nvcc and a Python with torch (CUDA) and numpy, but no Paddle. NVCC and PYTHON name others than those on the PATH.
#
#   custom_ops/tests/gpu/run.sh             # everything, a few minutes
#   custom_ops/tests/gpu/run.sh --no-times  # only correctness
#   custom_ops/tests/gpu/run.sh --no-checks # only times
#   custom_ops/tests/gpu/run.sh --quick     # fewer shapes
#
# Prints one table of all checks at the end (test, result, seconds, card, versions). gpu_results/ contains it as a file to attach to an
# issue, together with the rows of `make test-gpu` if that ran before (--results FOLDER for another folder).
#
# Liger's Triton kernel is timed if it can be imported. On a machine without a network, use its wheel:
#   pip download --no-deps liger-kernel     # on a machine with a network
#   LIGER_WHEEL=path/of/liger_kernel-VERSION-py3-none-any.whl custom_ops/tests/gpu/run.sh
set -euo pipefail
exec "${PYTHON:-python3}" -u "$(dirname "$0")/main.py" "$@"
