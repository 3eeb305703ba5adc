"""`verl-cast data`: DAPO-Math-17K and the benchmarks of the paper as Parquet files in verl's format.

sources.py    the table of data sets: hub names, splits, columns
loading.py    a source's rows, from the hub or from local files, with `datasets`
rows.py       those rows in verl's form, each problem once
model.py      a model from the hub, for nodes without network (--model)
command.py    arguments, files, manifest.json
"""
