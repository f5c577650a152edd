"""Sources of volumes: a model's decoder, or maps on disk."""
