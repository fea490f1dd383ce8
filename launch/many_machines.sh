#!/usr/bin/env bash
# Pretrain on several machines: start this on each of them, with the same arguments.
#
#   MASTER=HOST:PORT NODES=4 launch/many_machines.sh CONFIG.json [--key value ...]
#
# e.g. MASTER=10.0.0.1:37777 NODES=4 launch/many_machines.sh configs/pretrain/llama_2_70b_tp8_pp4.json
#
#   MASTER                the first machine, and a port that is free there (in a PaddleJob: PADDLE_MASTER); or
#                         etcd://HOST:PORT, then the launcher itself restarts the job (needs pip install etcd3, a JOB_ID
#                         of its own, and no --overwrite_output_dir, which each restart would obey)
#   NODES                 how many machines (in a PaddleJob: PADDLE_NNODES)
#   NODE_RANK             which of them this is, from 0; left out, the first is 0 and the others as they come
#   GPUS=0,1,2,3,4,5,6,7  the cards of each machine
#   DEVICE=cpu            RANKS processes on each machine's CPU instead (RANKS=8)
#   MAX_RESTART=3         restarts after a failure, each from the newest checkpoint; when one machine fails, the others
#                         fail with it and all meet again
#   LOG_DIR=log/node...   the launcher's logs
#   PYTHON=python         the interpreter
#
# The output folder and the data must be on a file system that all machines see.
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=${RANKS:-8}
MASTER=${MASTER:-${PADDLE_MASTER:-}}
NODES=${NODES:-${PADDLE_NNODES:-}}
case ${1:-} in "" | -h | --help) main "$@" ;; esac
if [[ -z $MASTER || -z $NODES ]]; then
  echo "error: MASTER=HOST:PORT and NODES=N are needed; launch/many_machines.sh -h explains." >&2
  exit 2
fi
# The launcher lets these win over its options; ours say the same with names resolved.
unset PADDLE_MASTER PADDLE_NNODES
LAUNCH+=(--nnodes "$NODES")
if [[ $MASTER == etcd://* ]]; then
  LAUNCH+=(--master "$MASTER" --job_id "${JOB_ID:-paddle_llm}" --elastic_level 1 --max_restart "$MAX_RESTART")
  MAX_RESTART=0
else
  addresses=$("$PYTHON" "$ROOT/launch/addresses.py" "$MASTER") || exit 2
  LAUNCH+=(--master "${addresses% *}" --host "${addresses#* }")
fi
if [[ -n ${NODE_RANK:-} ]]; then
  LAUNCH+=(--rank "$NODE_RANK")
  LOG_DIR=$LOG_DIR/node$NODE_RANK
else
  LOG_DIR=$LOG_DIR/node-$(hostname)
fi
main "$@"
