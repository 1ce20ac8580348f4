"""The NeMo side: a checkpoint's `context/` and its `weights/` in Megatron's `torch_dist` format."""
