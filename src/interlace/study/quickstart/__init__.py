"""The first five minutes: a hybrid and a transformer, trained side by side on real text."""
