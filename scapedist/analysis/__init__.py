"""Pure mathematics of the landscape: arrays in, arrays out."""
