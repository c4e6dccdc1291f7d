"""Work that is done again by another peer of the stage: which, by whom, and what follows when the results differ.

A share of all hops is drawn after they are done, by a signature of the data peer that nobody can foretell and everybody can
check (`draw`). The worker says what it had and what it made (`testimony`); another peer of its stage gets the same from the
worker's neighbours, computes, and says whether it agrees (`auditor`). If not, a third peer of the stage decides (`orders` asks
them, `judge` is the rule), and whoever is alone is convicted by the signatures of the others (`convictions`). A single accuser
never suffices: in a stage of two a difference is told to people, and nothing else follows. `audits.Audits` is all of it at one
peer.
"""
