"""What verl 0.9 lacks, and how the plugin makes up for it: the one place that changes how verl trains.

The other modules of this room use hooks that patches/verl would add to verl. Each part here stands in for one of them:

* 0001, estimators name batch fields: `with_fields_laid_out` (batch_fields.py), `StockStages` (classes.py).
* 0003a, trainer and actor worker by name: `install`, `StockStages` (classes.py).
* 0003b, a loss function processes logits: `StockWorkerMixin` (classes.py).

On a verl that has all of them (`seams.has_hooks`) nothing here is used.
"""
