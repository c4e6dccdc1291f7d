"""Networks, devices and breakdowns that this machine does not have, imposed on real peers for comparisons and tests.

It wraps what the other rooms offer (`rpc.api.DataPlane`, `discovery.dht.Records`) and changes only when things happen. Start
with `emulation` (`Emulation`, `EmulatedRpc`, `EmulatedDht`); `faults` breaks a peer down on purpose.
"""
