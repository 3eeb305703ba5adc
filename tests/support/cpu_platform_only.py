"""verl on the CPU without verl_cast's plugin, for runs that show that an unused plugin changes nothing."""

from verl_cast.platform import cpu

cpu.install()
