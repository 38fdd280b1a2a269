"""What the controller decides, apart from how it is carried out: sizes, roles, restarts, drains.

Owns pure decisions and the values they pass. Must not know Ray, processes, sockets or clocks.
"""
