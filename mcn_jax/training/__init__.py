"""Trains a network: the step, the epochs, the whole run and its metrics."""
