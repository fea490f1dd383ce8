#!/usr/bin/env bash
# Pretrain on the eight cards of one machine: optimizer states and gradients are divided among them (sharding stage 2).
#
#   launch/eight_cards_stage2.sh CONFIG.json [--key value ...]
#
# e.g. launch/eight_cards_stage2.sh configs/pretrain/llama_7b_sharding8_stage2.json
#
#   GPUS=0,1,2,3,4,5,6,7  the cards; fewer or more are right, too
#   DEVICE=cpu            RANKS processes on the CPU instead (RANKS=8)
#   MAX_RESTART=3         restarts after a failure, each from the newest checkpoint
#   LOG_DIR=log           the launcher's logs
#   PYTHON=python         the interpreter
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=${RANKS:-8}
FLAGS+=(--sharding stage2)
main "$@"
