#!/usr/bin/env bash
# Pretrain on eight cards with tensor_parallel_degree 4 and pipeline_parallel_degree 2.
#
#   launch/run_trainer_tp4pp2.sh [CONFIG.json] [--key value ...]
#
# Default: configs/pretrain/llama_7b_tp4_pp2.json, LLaMA-7B from random weights.
# The script sets these two degrees. The other degrees of CONFIG.json must be 1 or unset.
#
#   GPUS=0,1,2,3,4,5,6,7  cards
#   DEVICE=cpu            run on the CPU instead, with 8 processes
#   MAX_RESTART=3         maximum number of restarts after a failure, each from the newest checkpoint
#   LOG_DIR=log           folder for the logs of the launcher
#   PYTHON=python         Python interpreter
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=8
FLAGS+=(--tensor_parallel_degree 4 --pipeline_parallel_degree 2)
if (($# == 0)); then
  set -- "$ROOT/configs/pretrain/llama_7b_tp4_pp2.json"
fi
main "$@"
