"""Training recipes for `nemo llm finetune --factory NAME`. NeMo-Run imports this package to find them."""

from .tiny import tiny_longpo

__all__ = ["tiny_longpo"]
