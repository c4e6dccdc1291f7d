"""The lab: a small internet of network namespaces, so that claims about NAT are measured on real NATs.

`topology` says what there is, `plan` turns it into addresses and commands (pure), `lab` makes it and removes it, `runs` cleans
up after labs that were killed, `processes` and `warm` run programs inside a host. By hand: `python -m experiments.lab`.
Needs Linux, root, and the Debian packages iproute2 and nftables; nothing of it touches the machine's own network.
"""
