"""The self-teacher: its weights, its context, its forward, its part of a checkpoint.

weights.py      snapshot, ema, initial, current; the swap with the live parameters
node.py         who else holds the same shard; which copies are page-locked
host_copy.py    host memory that trades places with the live parameters
shards.py       the live parameters under FSDP1, FSDP2 and Megatron
context.py      the teacher's prompt; limits.py: how long it may be
forward.py      the teacher's pass on one rank
saved.py        the teacher's file in a checkpoint
privileged.py   contexts of the baselines, which show a reference; no CAST run imports it
"""
