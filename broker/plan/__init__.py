"""Plans: what a file says of phases and tags, what each phase and each change of phase takes, and what fits. Pure."""
