"""Benchmarks whose answers another model rates: MT-Bench and LongBench-Chat, with any OpenAI-compatible judge."""
