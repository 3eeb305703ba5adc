"""`verl-cast evaluate`: Avg@k and Pass@k of a model over benchmarks, sampled by vLLM.

command.py     options, the order of things, files written
models.py      what MODEL is: Hugging Face model, verl checkpoint, LoRA adapter; and what vLLM is to load
merge.py       a verl checkpoint as a Hugging Face model, by verl's own merger, in a process of its own
benchmarks.py  problems, out of Parquet files in verl's format
record.py      settings and samples on disk: a killed evaluation goes on where it was
results.py     Avg@k, Pass@k and their intervals
table.py       Markdown tables, of one or several evaluations
"""
