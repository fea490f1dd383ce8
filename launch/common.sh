# Functions of the launch scripts: command line, device, and restarts after a failure.
# shellcheck shell=bash
# A script sets RANKS (processes on this machine). It may set ENTRY (script to launch) and add to LAUNCH (options of
# paddle.distributed.launch) and FLAGS (flags placed before those of the user). Then it calls `main "$@"`.

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

# Start the job. Restarts and signals are handled as for `paddle-llm pretrain`, by paddle_llm/training/launch/supervisor.py.
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
  local arguments
  if [[ $1 == -* ]]; then
    arguments=("${FLAGS[@]}" "$@")
  else
    arguments=("$1" "${FLAGS[@]}" "${@:2}")
  fi
  exec "$PYTHON" "$ROOT/launch/supervise.py" "$MAX_RESTART" "$LOG_DIR" \
    "$PYTHON" -u -m paddle.distributed.launch "${LAUNCH[@]}" --log_dir "$LOG_DIR" "$ROOT/$ENTRY" -- "${arguments[@]}"
}
