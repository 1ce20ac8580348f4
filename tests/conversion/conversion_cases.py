"""The models that conversion is tested on."""

CASES = ("mistral", "mistral-odd", "qwen2", "qwen2-untied-bf16", "llama", "llama-tied-fp16")
