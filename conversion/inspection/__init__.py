"""What a directory holds, on either side, from headers and small files: no weights are read, no NeMo is imported."""
