"""Minimum-cost flows: which peers a microbatch should pass when a stage peer's capacity and each hop's cost are known.

Integers in, a plan and its reason out; it knows nothing of messages or of time passing. Start with `problem.Problem` (the
statement) and `plan_keeper.plan_problem`; `min_cost` is the solver, `certificate` proves a flow optimal, `problem_file` reads
problems.
"""
