#!/usr/bin/env bash
# Pretrain on one card.
#
#   launch/one_card.sh CONFIG.json [--key value ...]
#
# e.g. launch/one_card.sh configs/pretrain/llama_7b_one_card_h200.json --output_dir output/mine
#
#   GPUS=0         the card
#   DEVICE=cpu     one process on the CPU instead
#   MAX_RESTART=3  restarts after a failure, each from the newest checkpoint
#   LOG_DIR=log    the launcher's logs
#   PYTHON=python  the interpreter
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=1
main "$@"
