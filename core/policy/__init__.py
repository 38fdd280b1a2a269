"""Where requests go: every placement policy of Baton, pure and written once for router and simulator.

Must not do I/O, read a clock, log, or draw from a global random generator.
"""
