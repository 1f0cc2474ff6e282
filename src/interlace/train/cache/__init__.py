"""What a teacher says of prepared data, kept on disk: it is computed once, and students learn from it in any order."""
