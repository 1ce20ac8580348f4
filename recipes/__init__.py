"""Training recipes for `nemo llm finetune --factory NAME`, and the demo."""
