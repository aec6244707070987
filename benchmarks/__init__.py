"""Benchmarks of this project against plain implementations; README.md describes them and their results."""
