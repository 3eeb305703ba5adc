"""What is checked before a run: refusals (run.py), and advice on what works but makes no sense (advice.py)."""
