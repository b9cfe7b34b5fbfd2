"""Writes a run's files to its work directory, and reads them back."""
