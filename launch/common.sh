# Functions of the launch scripts: command line, device, and restarts after a failure.
# shellcheck shell=bash
# A script sets RANKS (processes on this machine). It may set ENTRY (script to launch) and ELASTIC (option of supervise.py), and
# add to LAUNCH (options of paddle.distributed.launch) and FLAGS (flags placed before those of the user). Then it calls
# `main "$@"`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python}
ENTRY=${ENTRY:-run_pretrain.py}
DEVICE=${DEVICE:-gpu}
LOG_DIR=${LOG_DIR:-log}
MAX_RESTART=${MAX_RESTART:-3}
LAUNCH=()
FLAGS=()
ELASTIC=()

# Print the help, which is the comment at the beginning of the calling script.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

# Print a message and exit as for every mistake of a user.
refuse() {
  echo "error: $1" >&2
  exit 2
}

# Refuse the value $2 of the variable $1 unless it is a whole number of at least $3.
require_number() {
  if [[ ! $2 =~ ^[0-9]+$ ]] || ((10#$2 < $3)); then
    refuse "$1 is '$2'. Use a whole number of at least $3."
  fi
}

require_python() {
  command -v "$PYTHON" >/dev/null || refuse "PYTHON is '$PYTHON', which is not a program. Give a Python interpreter."
}

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
      refuse "DEVICE is '$DEVICE'. Use gpu or cpu."
      ;;
  esac
}

# Set GPUS, unless it is set, to the first RANKS cards in CUDA_VISIBLE_DEVICES, or else to 0 to RANKS-1.
choose_cards() {
  local visible=${CUDA_VISIBLE_DEVICES-all} given=${GPUS:-} card cards seen=,
  for card in ${given//,/ }; do
    [[ $seen != *,$card,* ]] || refuse "GPUS=$GPUS lists card $card twice. Remove one."
    seen+=$card,
  done
  if [[ $visible == all ]]; then
    GPUS=${GPUS:-$(seq -s, 0 $((RANKS - 1)))}
    return
  fi
  IFS=, read -ra cards <<<"$visible"
  if [[ -z ${GPUS:-} ]]; then
    if ((${#cards[@]} < RANKS)); then
      refuse "CUDA_VISIBLE_DEVICES=$visible has ${#cards[@]} cards and $RANKS are needed. Unset it, or give GPUS=LIST."
    fi
    GPUS=$(IFS=, && echo "${cards[*]:0:RANKS}")
  fi
  for card in ${GPUS//,/ }; do
    if [[ ,$visible, != *,$card,* ]]; then
      refuse "GPUS=$GPUS: CUDA_VISIBLE_DEVICES=$visible does not contain card $card. Change one of them."
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
  require_number RANKS "$RANKS" 1
  require_number MAX_RESTART "$MAX_RESTART" 0
  require_python
  [[ -f $ROOT/$ENTRY ]] || refuse "ENTRY is '$ENTRY', which is not a file in $ROOT. Use run_pretrain.py or finetune_generation.py."
  choose_device
  # The last value of a flag counts, so the flags of the script come after CONFIG and before those of the user.
  local arguments
  if [[ $1 == -* ]]; then
    arguments=("${FLAGS[@]}" "$@")
  else
    arguments=("$1" "${FLAGS[@]}" "${@:2}")
  fi
  exec "$PYTHON" "$ROOT/launch/supervise.py" "${ELASTIC[@]}" "$MAX_RESTART" "$LOG_DIR" \
    "$PYTHON" -u -m paddle.distributed.launch "${LAUNCH[@]}" --log_dir "$LOG_DIR" "$ROOT/$ENTRY" -- "${arguments[@]}"
}
