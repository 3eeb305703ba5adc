"""`verl-cast diagnose`: accuracy in each context, and the gaps of two teachers. Analysis only.

No training code imports this package; a test enforces that. Its privileged context (privileged.py) shows a teacher the
reference answer, and no CAST setting selects it. command.py has the stages in their order.
"""
