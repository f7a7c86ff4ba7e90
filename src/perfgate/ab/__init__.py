"""Base against head: two revisions visited in turn on one device, case by case, in fresh processes.

    trees     the base beside the working tree, and what a process of either side sees
    channel   one message a line between this process and a worker
    workers   a pytest session of one side, which times what it is told to
    refusals  what makes a run no comparison at all
    crew      fresh workers of both sides for each block, started while the one before is timed
    blocks    every case prepared by both sides and visited A B B A or B A A B
    evidence  all that was seen, entry by entry; its journal can be judged again
    outcome   from what was seen and the decision to verdicts, sentences and the exit code
    progress  the line that says where it is
    command   the stages, the terminal, the options

Both sides run the measuring code of this very process. Nothing here decides what is slower: `perfgate.contest` does.
"""
