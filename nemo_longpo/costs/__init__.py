"""Sizes of a model, its FLOPs, and GPUs: what training and `longpo plan` both count with."""
