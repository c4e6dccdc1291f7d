"""What peers say to each other and publish: messages, records, and their form in msgpack.

Whatever comes from outside is checked here, and is a RemoteProtocolError when it is not as it should be; nothing is decided.
Start with `messages` (`to_header`, `from_header`) and `records` (`StageRecord`, `RunRecord`, `encode`, `decode_stage`,
`decode_run`, the keys of the DHT); `codec` turns dataclasses into plain values and back.
"""
