#!/usr/bin/env bash
# Pretrain on several machines. Start this script on each of them with the same arguments.
#
#   MASTER=HOST:PORT NODES=4 launch/many_machines.sh CONFIG.json [--key value ...]
#
# Example: MASTER=10.0.0.1:37777 NODES=4 launch/many_machines.sh configs/pretrain/llama_2_70b_tp8_pp4.json
#
#   MASTER                address of the first machine and a free port on it (default: PADDLE_MASTER, which a PaddleJob sets).
#                         With etcd://HOST:PORT the launcher restarts the job itself. This needs `pip install etcd3`, a
#                         separate JOB_ID for each job, and no --overwrite_output_dir, which would apply to each restart.
#   NODES                 number of machines (default: PADDLE_NNODES, which a PaddleJob sets)
#   NODE_RANK             number of this machine, from 0 (default: 0 for the first one, the others in the order of connection)
#   GPUS=0,1,2,3,4,5,6,7  cards of each machine
#   DEVICE=cpu            run on the CPU instead, with RANKS=8 processes per machine
#   MAX_RESTART=3         maximum number of restarts after a failure, each from the newest checkpoint. If one machine fails, the
#                         processes on the others end as well, and all are restarted.
#   MIN_NODES=2           restart with at least this many machines, if others are lost: the global batch stays, data or sharding
#                         degrees shrink and the gradient accumulation grows. The first machine must remain. The others have
#                         PADDLE_LLM_REJOIN_SECONDS=120 to register again
#   LOG_DIR=log           folder for the logs of the launcher, one subfolder per machine
#   PYTHON=python         Python interpreter
#
# The output folder and the data must be on a file system that all machines share.
set -euo pipefail
source "$(dirname "$0")/common.sh"
RANKS=${RANKS:-8}
MASTER=${MASTER:-${PADDLE_MASTER:-}}
NODES=${NODES:-${PADDLE_NNODES:-}}
case ${1:-} in "" | -h | --help) main "$@" ;; esac
if [[ -z $MASTER || -z $NODES ]]; then
  refuse "MASTER=HOST:PORT and NODES=N are not both set. Set them; launch/many_machines.sh -h describes them."
fi
[[ $MASTER == etcd://* ]] || require_number NODES "$NODES" 1 # etcd permits a range
[[ -z ${NODE_RANK:-} ]] || require_number NODE_RANK "$NODE_RANK" 0
# In the launcher these variables override its options. The options below have the same values with names resolved.
unset PADDLE_MASTER PADDLE_NNODES
if [[ -n ${MIN_NODES:-} ]]; then
  require_number MIN_NODES "$MIN_NODES" 1
  require_python
  if [[ $MASTER == etcd://* || $MAX_RESTART == 0 ]]; then
    refuse "MIN_NODES=$MIN_NODES needs MASTER=HOST:PORT and a MAX_RESTART of at least 1. Change one of them, or unset MIN_NODES."
  fi
  ranks=$RANKS
  if [[ $DEVICE == gpu && -n ${GPUS:-} ]]; then
    IFS=, read -ra cards <<<"$GPUS"
    ranks=${#cards[@]}
  fi
  # supervise.py adds the options about machines before each start.
  ELASTIC=(--elastic "$NODES" "$MIN_NODES" "$ranks" "$MASTER" "${NODE_RANK:-}")
elif [[ $MASTER == etcd://* ]]; then
  LAUNCH+=(--nnodes "$NODES" --master "$MASTER" --job_id "${JOB_ID:-paddle_llm}" --elastic_level 1 --max_restart "$MAX_RESTART")
  MAX_RESTART=0
else
  require_python
  addresses=$("$PYTHON" "$ROOT/launch/addresses.py" "$MASTER") || exit 2
  LAUNCH+=(--nnodes "$NODES" --master "${addresses% *}" --host "${addresses#* }")
fi
if [[ -n ${NODE_RANK:-} ]]; then
  [[ -n ${MIN_NODES:-} ]] || LAUNCH+=(--rank "$NODE_RANK")
  LOG_DIR=$LOG_DIR/node$NODE_RANK
else
  LOG_DIR=$LOG_DIR/node-$(hostname)
fi
main "$@"
