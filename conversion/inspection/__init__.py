"""Describe a directory of either side from headers and small files: no weights are read, no NeMo is imported."""
