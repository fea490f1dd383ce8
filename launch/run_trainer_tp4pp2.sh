#!/usr/bin/env bash
# Pretrain on eight cards as tensor parallel 4 x pipeline 2.
#
#   launch/run_trainer_tp4pp2.sh [CONFIG.json] [--key value ...]
#
# Without arguments: configs/pretrain/llama_7b_tp4_pp2.json, LLaMA-7B from random weights.
# Another configuration should leave its other degrees open, or name 8 ranks in all; the two degrees are set here.
#
#   GPUS=0,1,2,3,4,5,6,7  the cards
#   DEVICE=cpu            eight processes on the CPU instead
#   MAX_RESTART=3         restarts after a failure, each from the newest checkpoint
#   LOG_DIR=log           the launcher's logs
#   PYTHON=python         the interpreter
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=8
FLAGS+=(--tensor_parallel_degree 4 --pipeline_parallel_degree 2)
if (($# == 0)); then
  set -- "$ROOT/configs/pretrain/llama_7b_tp4_pp2.json"
fi
main "$@"
