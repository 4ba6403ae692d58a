"""Scenarios: a cell's objects in, one row per sample out. The only code that runs models for the tables."""
