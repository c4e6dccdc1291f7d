"""Weights and optimizer state on the disk and between peers: checkpoints, copies of neighbours' checkpoints, downloads.

Every state is hashed before it is taken up; which version is the right one is decided by the protocol. Start with
`checkpoints.Checkpoints`, `donor.StateDonor` and `transfer.StateDownload`; `replication` keeps copies for others.
`options` imports no torch.
"""
