"""What is checked before a run: refusals (check.py), advice (advice.py), the fitness of a context (fitness.py)."""
