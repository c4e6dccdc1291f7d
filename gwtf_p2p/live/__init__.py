"""Interpreter 2 of the protocol: asyncio and hivemind. The only folder that imports hivemind.

It carries out effects on a real network and a real device, and decides nothing about routes or commits. Start with
`peer/lifecycle.run_peer`, one peer from start to stop. Rooms, low to high: libp2p < discovery, rpc < nat < compute < state <
measure < emulation < peer; doctor stands beside peer.
"""
