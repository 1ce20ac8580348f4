#!/usr/bin/env bash
# As train_128k.sh, with Megatron-Bridge: 128K tokens, one node with 8 GPUs of 80 GB, straight from the Hugging Face model.
# The same command, given again after a kill, continues.
set -euo pipefail

MODEL=${MODEL:-models/Mistral-7B-Instruct-v0.2}
SHARDS=${SHARDS:-work/shards}
OUTPUT=${OUTPUT:-run_128k}

longpo plan --model "$MODEL" --length 131072 --branch-tokens 8192 --gpus 8 --trainer bridge

export CUDA_DEVICE_MAX_CONNECTIONS=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
torchrun --nproc-per-node=8 -m nemo_longpo.bridge.train --recipe mistral_7b_longpo_128k --log-dir "$OUTPUT/training" \
    "checkpoint.pretrained_checkpoint=$MODEL" \
    "dataset.paths=[$SHARDS]" \
    model.rotary_base=1e7 \
    model.seq_length=139264 \
    train.train_iters=200

longpo convert export --checkpoint "$OUTPUT/training" --output "$OUTPUT/model"
