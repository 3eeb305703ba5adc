"""`verl-cast report`: one self-contained HTML page about one or several runs, from their files.

It shows what a tracker does not: every dumped token coloured by its advantage, and the method's curves beside their
healthy ranges.

    command.py      arguments, terminal output
    metrics_file.py a file of verl's file logger -> {step: {name: value}}
    runs.py         the runs below a directory, each with its metrics, trajectory dumps and name
    healthy.py      the healthy range of a metric, for figures and findings
    notes.py        what a note is, and the statistics that rules share; findings.py: the rules
    figures.py      all figures; drawing.py: their traces and layout for plotly.js
    dump_view.py    dumped groups and tokens, as data for the trajectory view
    page.py         fills page.html.jinja with all of the above; scripts: *.js.jinja

Data flows in that order. Nothing here imports verl or torch. Neither this code nor the page uses a network.
"""
