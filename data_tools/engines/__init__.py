"""Ways to run a model: all give token ids for token ids."""
