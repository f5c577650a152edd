"""What a person takes away from a run: maps, particle lists, plots and the report."""
