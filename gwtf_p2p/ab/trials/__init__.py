"""What is compared: arms, controls, tasks, and results as lines of a file that an interrupted comparison goes on from.

Simulated runs are made here too; real processes are in `ab/live`. Start with `task.RunTask` and `result.RunResult`; `schedule`
runs tasks interleaved, so that a drifting machine is nobody's advantage.
"""
