"""What one life of a supervised peer leaves to the next: the p2pd that has outlived it, its place, what it has measured.

A crash gives nobody time to write anything down, so a life says what the next one may begin with as soon as it is settled.
Start at `handover`. Nothing here decides whether a peer is started again: that is `cli/process/supervisor`.
"""
