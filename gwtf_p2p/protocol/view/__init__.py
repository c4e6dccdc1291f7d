"""What one peer knows of all the others, and what follows from it: hop costs, and who should keep copies of whose checkpoints.

A view is made of records and never changes; it fetches nothing. Start with `network_view.NetworkView`; `hop_cost.hop_cost_us`
is the cost that every planner uses, `replica_choice` the rules of copies, `evaluations` what a run makes of its evaluations,
`idle_links` which links are measured for want of traffic.
"""
