"""How far one controller reaches: hundreds of workers that come, go and change their role, on one machine.

Owns a controller as it is, a router as it is, workers with simulated engines that share a process, and a stand-in for
Ray's actors. Must not know what is decided of pools.
"""
