"""The router beside those of others, in one run on one machine: `make bench-router`.

Owns the load client, the mock workers of every system, the peers' installation and start, and the tables. Must not
import the router: it is started as the process that it is in life, and measured from outside.
"""
