"""Plan, state, scheduler, supervisor, processes and records of one run."""
