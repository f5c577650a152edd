"""The report of a run: its pages, plots and pictures."""
