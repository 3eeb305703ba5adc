"""`verl-cast diagnose`: is the teacher's context fit, and how do gaps behave? Analysis only.

Nothing that trains imports this package (a test holds that): the privileged context (privileged.py), which shows the
reference answer, exists here alone and cannot be reached from a training config.

    command.py      options, the order of things, files written
    stages.py       sampling, verifying, comparing, scoring: what runs the model
    setup.py        what the verl command says: model, problems, sampling, verifier
    sampling.py     vLLM with the run's own settings (verl_cast.tools.vllm_process runs it)
    rollouts.py     trajectories, sampled or out of a dump
    scoring.py      log-probs by a plain transformers forward
    privileged.py   the context with the answer
    contexts.py     accuracy under each context: the fitness of the teacher's
    direction.py    where CAST would move the policy, and which levers let the verifier's sign through
    gaps.py         gaps of the answer-free and the privileged teacher, beside each other
    stats.py        intervals, AUC, agreement, correlations
    tokens.py       classes of tokens
    summary.py      the terminal's text
    figures.py      the page's figures
    page.py         the HTML page
"""
