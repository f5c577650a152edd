"""Stages of all particles: exact and approximate embeddings, placing, missed ones, comparison."""
