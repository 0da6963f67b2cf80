"""Training and testing: runner, recipe, launchers, hooks, optimizer parts and logging."""
