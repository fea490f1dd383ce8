# Sourced by the scripts beside it: the command line, the device, and restarts after a failure.
# shellcheck shell=bash
# A script sets RANKS (processes on this machine), may set ENTRY (what is launched) and add to LAUNCH (options of paddle.distributed.launch) and FLAGS
# (flags that stand before the user's), then calls `main "$@"`.
#
# Restarts are done here: `--max_restart` of paddle.distributed.launch (3.3.1) counts only with an etcd master; with any
# other one it is read and ignored.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python}
ENTRY=${ENTRY:-run_pretrain.py}
DEVICE=${DEVICE:-gpu}
LOG_DIR=${LOG_DIR:-log}
MAX_RESTART=${MAX_RESTART:-3}
LAUNCH=()
FLAGS=()

# The comment at the head of the calling script is its help.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

# gpu: one rank per card in GPUS (a list like 0,1,2), or on the first RANKS cards; cpu: RANKS ranks.
choose_device() {
  case $DEVICE in
    gpu)
      choose_cards
      LAUNCH+=(--gpus "$GPUS")
      ;;
    cpu)
      LAUNCH+=(--nproc_per_node "$RANKS")
      FLAGS+=(--device cpu)
      # The launcher (3.3.1) looks each rank up in this list, also for a CPU; the ranks hide all cards again.
      CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((RANKS - 1)))
      export CUDA_VISIBLE_DEVICES
      ;;
    *)
      echo "error: DEVICE is '$DEVICE': it is gpu or cpu." >&2
      exit 2
      ;;
  esac
}

# GPUS, where it is not set, is the first RANKS of CUDA_VISIBLE_DEVICES, or 0 to RANKS-1.
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
      echo "error: GPUS=$GPUS: CUDA_VISIBLE_DEVICES=$visible does not have card $card. Change one of the two." >&2
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

# Run the job once; its exit code in `code`. In the background, so that a scheduler's SIGTERM reaches it through us.
run_once() {
  code=0
  "$PYTHON" -u -m paddle.distributed.launch "${LAUNCH[@]}" --log_dir "$LOG_DIR" "$ROOT/$ENTRY" "$@" &
  child=$!
  wait "$child" || code=$?
  if [[ -n $stopped ]]; then # the signal ended our wait, not yet the job
    wait "$child" || true
  fi
  child=
}

# Exit code 2 is a mistake that a restart does not mend. After any other failure the job continues from the newest
# checkpoint that it wrote, at most MAX_RESTART times.
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
  # A flag given twice counts as given last: the script's come behind CONFIG and before the user's.
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
    echo "$(basename "$0"): the job ended with $code; restart $restarts of $MAX_RESTART" >&2
    # Ranks that are still ending hold the lock of the output folder.
    export PADDLE_LLM_LOCK_WAIT=${PADDLE_LLM_LOCK_WAIT:-120}
    mapfile -t more < <("$PYTHON" "$ROOT/launch/restart_flags.py" "$started" "${arguments[@]}")
    run_once "${arguments[@]}" "${more[@]}"
  done
  exit "$code"
}
