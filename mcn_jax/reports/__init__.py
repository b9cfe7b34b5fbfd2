"""Presents results: tables, figures and pages of runs and networks."""
