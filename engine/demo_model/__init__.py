"""Small models for demonstrations, tests and benchmarks: one trained on plays, others with random weights.

Owns the making of model folders in the Hugging Face layout. It knows nothing of engines, workers or requests,
and nothing that serves imports it.
"""
