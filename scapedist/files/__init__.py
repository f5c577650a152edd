"""Formats that people bring and take: each read safely and written whole."""
