# Functions of the launch scripts: command line, device, and restarts after a failure.
# shellcheck shell=bash
# A script sets RANKS (processes on this machine). It may set ENTRY (script to launch) and add to LAUNCH (options of
# paddle.distributed.launch) and FLAGS (flags placed before those of the user). Then it calls `main "$@"`.
#
# Restarts are done here because paddle.distributed.launch (3.3.1) ignores `--max_restart` unless the master is etcd.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python}
ENTRY=${ENTRY:-run_pretrain.py}
DEVICE=${DEVICE:-gpu}
LOG_DIR=${LOG_DIR:-log}
MAX_RESTART=${MAX_RESTART:-3}
LAUNCH=()
FLAGS=()

# Print the help, which is the comment at the beginning of the calling script.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

# gpu: one rank per card in GPUS (a list such as 0,1,2), by default on the first RANKS cards. cpu: RANKS ranks.
choose_device() {
  case $DEVICE in
    gpu)
      choose_cards
      LAUNCH+=(--gpus "$GPUS")
      ;;
    cpu)
      LAUNCH+=(--nproc_per_node "$RANKS")
      FLAGS+=(--device cpu)
      # The launcher (3.3.1) reads one entry of this list per rank, also on a CPU. The ranks then hide all cards.
      CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((RANKS - 1)))
      export CUDA_VISIBLE_DEVICES
      ;;
    *)
      echo "error: DEVICE is '$DEVICE'. Use gpu or cpu." >&2
      exit 2
      ;;
  esac
}

# Set GPUS, unless it is set, to the first RANKS cards in CUDA_VISIBLE_DEVICES, or else to 0 to RANKS-1.
choose_cards() {
  local visible=${CUDA_VISIBLE_DEVICES-all} card cards
  if [[ $visible == all ]]; then
    GPUS=${GPUS:-$(seq -s, 0 $((RANKS - 1)))}
    return
  fi
  IFS=, read -ra cards <<<"$visible"
  if [[ -z ${GPUS:-} ]]; then
    if ((${#cards[@]} < RANKS)); then
      echo "error: CUDA_VISIBLE_DEVICES=$visible has ${#cards[@]} cards and $RANKS are needed. Unset it, or give GPUS=LIST." >&2
      exit 2
    fi
    GPUS=$(IFS=, && echo "${cards[*]:0:RANKS}")
  fi
  for card in ${GPUS//,/ }; do
    if [[ ,$visible, != *,$card,* ]]; then
      echo "error: GPUS=$GPUS: CUDA_VISIBLE_DEVICES=$visible does not contain card $card. Change one of them." >&2
      exit 2
    fi
  done
}

child=
stopped=
stop() {
  stopped=1
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}

# Run the job once and set `code` to its exit code. It runs in the background, so that `stop` can pass on the SIGTERM of a
# scheduler.
run_once() {
  code=0
  "$PYTHON" -u -m paddle.distributed.launch "${LAUNCH[@]}" --log_dir "$LOG_DIR" "$ROOT/$ENTRY" "$@" &
  child=$!
  wait "$child" || code=$?
  if [[ -n $stopped ]]; then # the signal has ended `wait`, but the job may still run
    wait "$child" || true
  fi
  child=
}

# Exit code 2 is a mistake of the user and 3 a non-finite step, which a restart does not fix. After any other failure the job
# is restarted from its newest checkpoint, at most MAX_RESTART times.
main() {
  case ${1:-} in
    -h | --help)
      usage
      exit 0
      ;;
    "")
      usage >&2
      exit 2
      ;;
  esac
  choose_device
  # The last value of a flag counts, so the flags of the script come after CONFIG and before those of the user.
  local arguments more
  if [[ $1 == -* ]]; then
    arguments=("${FLAGS[@]}" "$@")
  else
    arguments=("$1" "${FLAGS[@]}" "${@:2}")
  fi
  local started restarts=0 code
  started=$(date +%s)
  trap stop TERM INT
  run_once "${arguments[@]}"
  while ((code != 0 && code != 2 && code != 3 && restarts < MAX_RESTART)) && [[ -z $stopped ]]; do
    restarts=$((restarts + 1))
    echo "$(basename "$0"): the job ended with exit code $code; restart $restarts of $MAX_RESTART" >&2
    # Ranks that have not ended yet still have the lock of the output folder.
    export PADDLE_LLM_LOCK_WAIT=${PADDLE_LLM_LOCK_WAIT:-120}
    mapfile -t more < <("$PYTHON" "$ROOT/launch/restart_flags.py" "$started" "${arguments[@]}")
    run_once "${arguments[@]}" "${more[@]}"
  done
  exit "$code"
}
