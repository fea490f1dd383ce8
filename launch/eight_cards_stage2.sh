#!/usr/bin/env bash
# Pretrain on the eight cards of one machine with sharding stage 2 (optimizer states and gradients).
#
#   launch/eight_cards_stage2.sh CONFIG.json [--key value ...]
#
# Example: launch/eight_cards_stage2.sh configs/pretrain/llama_7b_sharding8_stage2.json
#
#   GPUS=0,1,2,3,4,5,6,7  cards; any number
#   DEVICE=cpu            run on the CPU instead, with RANKS=8 processes
#   MAX_RESTART=3         maximum number of restarts after a failure, each from the newest checkpoint
#   LOG_DIR=log           folder for the logs of the launcher
#   PYTHON=python         Python interpreter
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=${RANKS:-8}
FLAGS+=(--sharding stage2)
main "$@"
