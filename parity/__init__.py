"""Proof of fidelity: our functions against numbers that were recorded from the public implementation.

`python -m parity --help` says how to run it. Not shipped: nothing of the product imports it.

    recorded case   inputs and outputs of one function of the public implementation ("upstream" here), data only
    group           recorded cases of one kind, a folder such as `b_losses`; compared by a module of `parity.groups`
    set             a folder of groups, recorded with one seed (`RecordedSet`)
    row             one comparison: what, how far apart, what distance passes (`Row`)

Where upstream is right, a group compares our function itself. Where it is wrong, `parity.upstream` computes its number
from our functions and the group compares that; a row with a reason then shows upstream's value beside ours.
"""
