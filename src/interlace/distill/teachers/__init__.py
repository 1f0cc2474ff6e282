"""The teachers: endpoints and local checkpoints, with their rates, retries and budgets."""
