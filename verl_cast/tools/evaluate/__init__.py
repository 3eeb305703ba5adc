"""`verl-cast evaluate`: Avg@k and Pass@k of a model over benchmarks, sampled by vLLM.

command.py     options, the steps in order, files written
models.py      the kinds of MODEL: Hugging Face model, verl checkpoint, LoRA adapter; what vLLM loads for each
merge.py       merges a verl checkpoint into a Hugging Face model, by verl's own merger in a separate process
benchmarks.py  problems from Parquet files in verl's format
record.py      settings and samples on disk: a killed evaluation resumes where it stopped
results.py     Avg@k, Pass@k and their intervals
table.py       Markdown tables, of one or several evaluations
"""
