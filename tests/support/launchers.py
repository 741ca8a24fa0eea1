"""Launchers of several processes; `python -m` before, a module and its arguments behind."""

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
"""Two processes on this machine, on a free port."""
