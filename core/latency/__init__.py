"""How long an engine step, a prefill and a transfer take: one model for router, planner and simulator.

Must not measure anything or know who asks. Seconds, tokens and bytes throughout.
"""
