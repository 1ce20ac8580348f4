"""Model families: which Hugging Face tensors are which Megatron tensor, as tables and pure functions of shapes."""
