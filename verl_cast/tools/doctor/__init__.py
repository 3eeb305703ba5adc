"""`verl-cast doctor`: what is wrong with this installation or with a verl command, before anything is started."""
