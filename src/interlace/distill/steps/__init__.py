"""What a recipe is made of: one file per family of steps."""
