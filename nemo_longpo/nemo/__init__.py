"""The NeMo 2 way in: its recipes, and its model, data module, strategy and callbacks around our model, data and loss.

`nemo_longpo.bridge` is the way in with Megatron-Bridge.
"""
