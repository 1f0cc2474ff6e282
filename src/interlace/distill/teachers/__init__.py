"""Who answers: endpoints and local checkpoints, their pace, retries and budgets."""
