#!/usr/bin/env bash
# Is the trained model better at length, and no worse at short? BEFORE and AFTER are model directories, DATA is where the
# benchmarks' files are or will be. One node with 8 GPUs and vLLM (`make vllm-env`); give it again after a kill.
set -euo pipefail

before=${BEFORE:-models/Mistral-7B-Instruct-v0.2} after=${AFTER:-run_128k/model} data=${DATA:-benchmarks_data}
models=("before=$before" "after=$after")
# The model after training reads 128K tokens, the one before 32K: each is asked what fits it, and the rest is counted.
engine=(--engine vllm --dtype bfloat16 --tensor-parallel-size 8)

longpo eval --fetch --suite paper --data "$data"  # where the network is; does nothing when all is there
longpo eval "${models[@]}" --suite paper --data "$data" --output run_128k/eval --dry-run

# A first look at 20 questions per task and length, then all of them.
longpo eval "${models[@]}" --suite paper --data "$data" --output run_128k/eval_quick --samples 20 "${engine[@]}"
longpo eval "${models[@]}" --suite paper --data "$data" --output run_128k/eval "${engine[@]}" \
    --fail-if 'short<-1.0' --fail-if 'long<0'
