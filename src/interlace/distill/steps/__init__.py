"""The steps that a recipe is made of: one file for each family of steps."""
