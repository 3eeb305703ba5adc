"""`verl-cast report`: one self-contained HTML page about one or several runs, from their files alone.

    command.py      arguments and terminal output
    metrics_file.py one metrics file: verl's file logger (JSON lines) or a console log -> {step: {name: value}}
    runs.py         the runs below a directory, each with its metrics, trajectory dumps and name
    notes.py        what a note is; rules_training.py, rules_cast.py: one function per rule; findings.py: all rules
    explained.py    what the metrics mean, from the table in verl_cast/advantage/README.md
    figures.py      what a figure is; figure_table.py: all figures
    palette.py      the page's colours in the light and the dark mode
    x_axes.py       the x axes that the metrics allow: steps, tokens, hours
    drawing.py      figures with plotly
    dump_view.py    dumped groups and tokens, as data for the page's trajectory view
    summary.py      a run's settings and key numbers
    text.py         numbers as text
    page.py         fills page.html.jinja with all of the above; scripts: *.js.jinja
    watch.py        makes the page again while a run goes on

Data flows in that order. Nothing here imports verl or torch. Neither this code nor the page uses a network.
"""
