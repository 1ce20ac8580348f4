"""Where a run without an accelerator is made possible; see `cpu`."""
