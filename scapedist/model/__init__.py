"""A trained cryoDRGN model: loading, its field, its volumes."""
