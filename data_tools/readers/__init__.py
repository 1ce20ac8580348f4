"""Readers of files and datasets as records, for documents and for published pairs."""
