#!/usr/bin/env bash
# Fine-tune on one card, or on several of one machine.
#
#   launch/finetune.sh CONFIG.json [--key value ...]
#
# e.g. launch/finetune.sh configs/finetune/llama_2_7b_lora.json --dataset_name_or_path my_data
#
#   GPUS=0,1       the cards; one is right, too
#   DEVICE=cpu     RANKS processes on the CPU instead (RANKS=1)
#   MAX_RESTART=3  restarts after a failure, each from the newest checkpoint
#   LOG_DIR=log    the launcher's logs
#   PYTHON=python  the interpreter
#
# On many machines: ENTRY=finetune_generation.py launch/many_machines.sh (or slurm.sbatch).
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=${RANKS:-1}
ENTRY=finetune_generation.py
main "$@"
