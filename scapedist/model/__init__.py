"""A trained cryoDRGN model: loading it, its field and its volumes."""
