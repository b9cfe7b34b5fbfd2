"""How a network is trained: the step, the epochs, the run, and what each run reports."""
