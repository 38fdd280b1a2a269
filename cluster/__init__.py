"""Where workers run and how routers reach them: sessions over gRPC, membership, launching, Ray.

Must not know HTTP fronts or the simulator. Ray carries no token and no KV block.
"""
