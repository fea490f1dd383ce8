#!/usr/bin/env bash
# Pretrain on one card.
#
#   launch/one_card.sh CONFIG.json [--key value ...]
#
# Example: launch/one_card.sh configs/pretrain/llama_7b_one_card_h200.json --output_dir output/mine
#
#   GPUS=0         card
#   DEVICE=cpu     run on the CPU instead
#   MAX_RESTART=3  maximum number of restarts after a failure, each from the newest checkpoint
#   LOG_DIR=log    folder for the logs of the launcher
#   PYTHON=python  Python interpreter
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=1
main "$@"
