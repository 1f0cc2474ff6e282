"""What the operators share: backends, operands, checks, custom operators, chunks."""
