"""The data plane: tensors pushed and small messages sent between peers, over libp2p streams.

The other end is told apart by its authenticated id; what a message means is its handler's business. Start with `api`
(`DataPlane`, `RpcService`, results and failures), then `rpc.Rpc`; `frames` says what is on the stream.
"""
