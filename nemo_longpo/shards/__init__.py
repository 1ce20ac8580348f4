"""Preference pairs on disk: schema, reader, writer, provenance."""
