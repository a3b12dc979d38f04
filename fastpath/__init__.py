"""The fast path: numpy kernels on structures of arrays, one lane a guest.

Independent of the reference: nothing here imports `capvisor.model`, and the formulas are other ones where that is quicker.
Kernels take their inputs, their scratch (a `Workspace`) and their outputs as arrays of one block's length; they allocate
nothing and loop over no lane. All numbers are uint64 and truth values bool. An output may be one of the inputs unless a
kernel says otherwise.
"""
