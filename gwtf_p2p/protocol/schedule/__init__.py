"""Plans of whole iterations: which peers each microbatch passes, and when, so that the iteration ends soonest.

A model of the pipeline (`model.forecast`) says how long a plan takes, `search` looks for a better one; figures come from the
view, never from a clock. Start with `iteration_plan` (`plan_for`, `revise`, the `IterationPlan` that is published).
"""
