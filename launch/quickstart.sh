#!/usr/bin/env bash
# From nothing to a trained model on this machine's CPU: tensor x pipeline x sharded data parallelism in a few minutes.
# Usage: launch/quickstart.sh [--key value ...]   (flags go to run_pretrain.py; PYTHON chooses the interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RUN=quickstart_run
step() { printf '\n== %s\n' "$1" >&2; }

step "1/5 text that every Python carries"
rm -rf "$RUN"
"$PYTHON" launch/quickstart_corpus.py "$RUN"/text.jsonl

step "2/5 a sentencepiece tokenizer trained on it"
"$PYTHON" -m paddle_llm.cli tokenizer train --input "$RUN"/text.jsonl --output_dir "$RUN"/tokenizer --vocab_size 4000

step "3/5 the corpus, tokenised"
"$PYTHON" -m paddle_llm.cli data build --input "$RUN"/text.jsonl --tokenizer "$RUN"/tokenizer --output_prefix "$RUN"/data/python --workers 2

step "4/5 pretraining on 8 CPU ranks: tp2 x pp2 x sharding2 (stage 2)"
# The launcher looks each rank up in this list, also for a CPU; the ranks hide all cards again.
CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 "$PYTHON" -m paddle.distributed.launch --nproc_per_node 8 --log_dir "$RUN"/log run_pretrain.py configs/pretrain/quickstart.json "$@"

step "5/5 what it learnt"
"$PYTHON" launch/quickstart_report.py "$RUN"/output "$RUN"/data/python
"$PYTHON" -m paddle_llm.cli generate "$RUN"/output/model --prompt "The function returns" --max_new_tokens 40 --temperature 0.7 --top_p 0.9
printf '\nThe curves:  %s -m paddle_llm.cli board %s/output\n' "$PYTHON" "$RUN"
