"""How people look at results: tables, figures and pages of runs and networks."""
