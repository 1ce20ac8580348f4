"""What a model costs: its sizes, its FLOPs, and the devices that pay. Training and `longpo plan` both count with it."""
