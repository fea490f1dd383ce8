#!/usr/bin/env bash
# Train a small model on the CPU of this machine in a few minutes, with tensor, pipeline and sharded data parallelism.
# Usage: launch/quickstart.sh [--key value ...]   (flags of run_pretrain.py; PYTHON is the Python interpreter)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RUN=quickstart_run
PROMPT="The function returns"
step() { printf '\n== %s (after %d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)) >&2; }

step "1/5 Extract text from the Python installation: language reference and docstrings"
rm -rf "$RUN"
"$PYTHON" launch/quickstart_corpus.py "$RUN"/text.jsonl

step "2/5 Train a sentencepiece tokenizer of 4,000 tokens on the text"
"$PYTHON" -m paddle_llm.cli tokenizer train --input "$RUN"/text.jsonl --output_dir "$RUN"/tokenizer --vocab_size 4000

step "3/5 Tokenize the text into a corpus"
"$PYTHON" -m paddle_llm.cli data build --input "$RUN"/text.jsonl --tokenizer "$RUN"/tokenizer --output_prefix "$RUN"/data/python --workers 2

step "4/5 Pretrain on 8 CPU ranks: tensor 2 x pipeline 2 x sharding stage 2 over 2; this takes most of the time"
"$PYTHON" -m paddle_llm.cli pretrain configs/pretrain/quickstart.json --nproc_per_node 8 --log_dir "$RUN"/log "$@"

step "5/5 Generate 40 tokens and report the result"
"$PYTHON" -m paddle_llm.cli generate "$RUN"/output/model --prompt "$PROMPT" --max_new_tokens 40 --temperature 0.7 --top_p 0.8 >"$RUN"/sample.txt
"$PYTHON" launch/quickstart_report.py "$RUN" "$PROMPT"
