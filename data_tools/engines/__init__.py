"""Engines that run a model; all take token ids and return token ids."""
