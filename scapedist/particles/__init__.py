"""Every particle of the data: exact, reduced, guessed, placed, missed, compared."""
