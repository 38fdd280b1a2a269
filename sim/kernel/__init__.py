"""The physics of the simulator, compiled: engines that step, queues, KV blocks, links, outages, and routing rules.

One state of flat arrays (sim.kernel.state), one clock, one heap of events. Both gears run this code: the search gear
decides routes in it too (sim.kernel.routing), the full gear hands each arrival to a Python policy.
"""
