"""The stages of a run, one a file: sketch, volumes, mask, components, states."""
