#!/usr/bin/env bash
# The CUDA kernels of RMSNorm on a GPU: builds them with nvcc, holds them against float64, then times them beside their peers.
# Needs nvcc and a Python with torch (CUDA) and numpy; no Paddle. NVCC and PYTHON name others than those on the PATH.
#
#   custom_ops/tests/gpu/run.sh             # everything, a few minutes
#   custom_ops/tests/gpu/run.sh --no-times  # correctness alone
#   custom_ops/tests/gpu/run.sh --no-checks # times alone
#   custom_ops/tests/gpu/run.sh --quick     # fewer shapes
#
# Ends with one table of all checks (test, result, seconds, card, versions). gpu_results/ holds it as a file to attach to an
# issue, together with the rows of `make test-gpu` if that ran before (--results FOLDER for another folder).
#
# Liger's Triton kernel is timed where it can be imported. Where there is neither it nor a network, its wheel can be brought along:
#   pip download --no-deps liger-kernel     # where there is a network
#   LIGER_WHEEL=path/of/liger_kernel-VERSION-py3-none-any.whl custom_ops/tests/gpu/run.sh
set -euo pipefail
exec "${PYTHON:-python3}" -u "$(dirname "$0")/main.py" "$@"
