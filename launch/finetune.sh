#!/usr/bin/env bash
# Fine-tune on one or several cards of one machine.
#
#   launch/finetune.sh CONFIG.json [--key value ...]
#
# Example: launch/finetune.sh configs/finetune/llama_2_7b_lora.json --dataset_name_or_path my_data
#
#   GPUS=0,1       cards; by default one
#   DEVICE=cpu     run on the CPU instead, with RANKS=1 processes
#   MAX_RESTART=3  maximum number of restarts after a failure, each from the newest checkpoint
#   LOG_DIR=log    folder for the logs of the launcher
#   PYTHON=python  Python interpreter
#
# On several machines: ENTRY=finetune_generation.py launch/many_machines.sh (or slurm.sbatch).
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=${RANKS:-1}
ENTRY=finetune_generation.py
main "$@"
