#!/usr/bin/env bash
# From a short-context model and shards to a long-context model: 128K tokens, one node with 8 GPUs of 80 GB.
# The same command, given again after a kill, continues.
set -euo pipefail

MODEL=${MODEL:-models/Mistral-7B-Instruct-v0.2}
SHARDS=${SHARDS:-work/shards}
OUTPUT=${OUTPUT:-run_128k}

longpo plan --model "$MODEL" --length 131072 --branch-tokens 8192 --gpus 8
if [ ! -d "$OUTPUT/start" ]; then
    longpo convert import --model "$MODEL" --output "$OUTPUT/start" --rope-theta 1e7 --max-length 139264
fi

export CUDA_DEVICE_MAX_CONNECTIONS=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
nemo llm finetune --factory mistral_7b_longpo_128k --yes \
    data.paths="$SHARDS" \
    resume.restore_config.path="$OUTPUT/start" \
    log.log_dir="$OUTPUT/training" \
    trainer.max_steps=200

longpo convert export --checkpoint "$OUTPUT/training" --output "$OUTPUT/model"
