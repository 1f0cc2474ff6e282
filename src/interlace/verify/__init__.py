"""Whether an answer is right: numbers, expressions, patterns, schemas, and programs in a cage."""
