"""Short-to-long preference optimization (LongPO) for Megatron-Core and NeMo 2.x."""

__version__ = "0.1.0"
