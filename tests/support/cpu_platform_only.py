"""verl on the CPU without verl_cast's plugin: for runs that show what the plugin changes (nothing, unless asked)."""

from verl_cast.platform import cpu

cpu.install()
