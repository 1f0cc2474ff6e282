"""The experts of a mixture, each on the tokens that were sent to it."""
