#!/usr/bin/env bash
# Create a virtual environment with PaddleFormers, which verifies exports. It cannot be installed together with PaddleNLP.
# Usage: launch/paddleformers_env.sh DIR
#   Then run paddle-llm export ... --paddleformers_python DIR/bin/python, or set PADDLE_LLM_PADDLEFORMERS_PYTHON=DIR/bin/python.
# PYTHON is the Python interpreter (3.10 to 3.12). The environment needs 1.8 GB of disk and computes on the CPU.
set -euo pipefail
PYTHON=${PYTHON:-python3}
PINS=(
  paddlepaddle==3.3.1
  paddleformers==1.2.0
  transformers==5.3.0 # the newest that PaddleFormers supports (5.0 to 5.3); used without torch, for tokenizers and configurations
  tokenizers==0.22.2
  safetensors==0.8.0
  sentencepiece==0.2.3
  numpy==1.26.4
  aistudio-sdk==0.3.9
)

case ${1:-} in
  -h | --help | "")
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0" >&2
    [[ -n ${1:-} ]] || exit 2
    exit 0
    ;;
esac
DIR=$1
if [[ -e $DIR && ! -f $DIR/pyvenv.cfg ]]; then
  echo "error: $DIR exists and is not a virtual environment. Give another folder." >&2
  exit 2
fi
# PaddleFormers imports pip, so the environment must contain it.
[[ -x $DIR/bin/python ]] || "$PYTHON" -m venv "$DIR"
"$DIR/bin/python" -m pip install --quiet --disable-pip-version-check "${PINS[@]}" >&2
"$DIR/bin/python" -m pip check >&2
GLOG_minloglevel=2 "$DIR/bin/python" -W ignore -c "from paddleformers.transformers import AutoModelForCausalLM" >&2
echo "$DIR/bin/python"
