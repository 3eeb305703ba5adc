"""`verl-cast diagnose`: is the teacher's context fit, and how do gaps behave? Analysis only.

No training code imports this package; a test enforces that. Its privileged context (privileged.py) shows a teacher the
reference answer, and no CAST training config can select it.

    command.py      options, order of the stages, output files
    stages.py       the stages: sampling, verifying, comparing contexts, scoring
    setup.py        model, problems, sampling and verifier of a verl command
    sampling.py     vLLM with the run's own settings (verl_cast.tools.vllm_process runs it)
    rollouts.py     trajectories, sampled here or read from a dump
    scoring.py      log-probs by a plain transformers forward
    privileged.py   the context with the answer
    contexts.py     accuracy under each context: is the teacher's context fit?
    direction.py    where CAST would move the policy, and which levers keep the verifier's sign
    gaps.py         gaps of the answer-free and the privileged teacher, side by side
    tokens.py       classes and positions of tokens
    summary.py      the text for the terminal
    figures.py      the page's figures
    page.py         the HTML page

Intervals, AUC and sign agreement are in verl_cast/tools/stats.py.
"""
