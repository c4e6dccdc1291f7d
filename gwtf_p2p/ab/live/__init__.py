"""A trial on real processes of this machine, over emulated links.

It starts peers, the wire that shares their lines, and the churn, and turns what they report into a `RunResult`. Start with
`run.run_live`; `plan` says what each process is told.
"""
