"""The gate that needs no GPU: what compiled kernels say of themselves, held against committed baselines.

A *build* is one kernel as one architecture gets it, compiled ahead of time. Its *profile* is read off the binary:
registers, local and shared memory, the instructions that decide its speed, and their order in the main loop. Nothing is
run, so nothing is timed: the gate sees that a kernel spills, lost its matrix instructions or waits where it did not,
and not how much slower that makes it.
"""
