"""Tokenised datasets that others published: reading, checking and repairing them."""
