"""Training with NeMo 2: its recipes, and its model, data module, strategy and callbacks around our data and loss.

`nemo_longpo.bridge` is the same with Megatron-Bridge.
"""
