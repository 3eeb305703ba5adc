"""`verl-cast doctor`: checks this installation and a verl command before training starts."""
