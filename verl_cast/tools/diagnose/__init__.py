"""`verl-cast diagnose`: accuracy in each context, and the gaps of two teachers. Analysis only.

No training code imports this package; a test enforces that. Its privileged context (privileged.py) shows a teacher the
reference answer, and no CAST setting selects it.

    command.py      options, order of the stages, output files
    setup.py        model, problems, prompts and verifier of a verl command
    sampling.py     vLLM with the run's own sampling settings
    contexts.py     accuracy in each context
    scoring.py      log-probs by a plain transformers forward
    privileged.py   the context with the answer
    gaps.py         gaps of the answer-free and the privileged teachers
    summary.py      the text for the terminal
    page.py         the HTML page and its figures

Intervals, AUC and sign agreement are in verl_cast/tools/stats.py.
"""
