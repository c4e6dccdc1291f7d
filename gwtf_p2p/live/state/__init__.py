"""Weights and optimizer state on the disk and between peers: checkpoints, copies of neighbours' checkpoints, downloads.

Every state is hashed before it is taken up; which version is the right one is decided by the protocol. Start with
`checkpoints.Checkpoints` and `transfer` (`StateDonor`, `StateDownload`); `replication` keeps copies for others. `options`
imports no torch.
"""
