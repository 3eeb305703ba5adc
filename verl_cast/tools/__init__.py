"""The command `verl-cast`: cli.py and a package for each of its commands. README.md describes them.

No other room imports this one.
"""
