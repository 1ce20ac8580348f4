"""`longpo eval`: is the trained model better at length, and no worse at short? On lm-evaluation-harness.

Never imports NeMo: it runs beside training, in the vLLM environment, or against servers.
"""
