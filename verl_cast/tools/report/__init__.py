"""`verl-cast report`: one self-contained HTML page about one or several runs, from their files alone.

    command.py      arguments, what the terminal says
    reader.py       one metrics file: verl's file logger (JSON lines) or a console log -> {step: {name: value}}
    runs.py         the runs below a directory: which metrics, which trajectory dumps, which names
    notes.py        what a note is; rules_training.py, rules_cast.py: one function per rule; reading.py: all of them
    figures.py      what a figure is; figure_table.py: all of them, and what is healthy in each
    drawing.py      figures with plotly
    dump_view.py    the dump's tokens and groups as the data of the page's trajectory view
    summary.py      a run's settings and key numbers
    text.py         numbers as text
    page.py         all of the above through page.html.jinja

Data flows in that order. Nothing here imports verl or torch, and neither this code nor the page reaches a network.
"""
