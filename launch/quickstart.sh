#!/usr/bin/env bash
# Train a small model on the CPU of this machine in a few minutes, with tensor, pipeline and sharded data parallelism.
# Usage: launch/quickstart.sh [--key value ...]   (flags of run_pretrain.py; PYTHON is the Python interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RUN=quickstart_run
step() { printf '\n== %s\n' "$1" >&2; }

step "1/5 extract text from the Python installation"
rm -rf "$RUN"
"$PYTHON" launch/quickstart_corpus.py "$RUN"/text.jsonl

step "2/5 train a sentencepiece tokenizer on the text"
"$PYTHON" -m paddle_llm.cli tokenizer train --input "$RUN"/text.jsonl --output_dir "$RUN"/tokenizer --vocab_size 4000

step "3/5 tokenize the text into a corpus"
"$PYTHON" -m paddle_llm.cli data build --input "$RUN"/text.jsonl --tokenizer "$RUN"/tokenizer --output_prefix "$RUN"/data/python --workers 2

step "4/5 pretrain on 8 CPU ranks: tp2 x pp2 x sharding2 (stage 2)"
# The launcher reads one entry of this list per rank, also on a CPU. The ranks then hide all cards.
CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 "$PYTHON" -m paddle.distributed.launch --nproc_per_node 8 --log_dir "$RUN"/log run_pretrain.py configs/pretrain/quickstart.json "$@"

step "5/5 evaluate and generate text"
"$PYTHON" launch/quickstart_report.py "$RUN"/output "$RUN"/data/python
"$PYTHON" -m paddle_llm.cli generate "$RUN"/output/model --prompt "The function returns" --max_new_tokens 40 --temperature 0.7 --top_p 0.9
printf '\nTo see the curves, run %s -m paddle_llm.cli board %s/output\n' "$PYTHON" "$RUN"
