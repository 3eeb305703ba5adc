"""verl's side: trainer, actor worker, estimator and loss. README.md follows one step through these modules."""
