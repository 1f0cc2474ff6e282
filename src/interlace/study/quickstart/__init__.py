"""The quickstart: a hybrid and a transformer, trained side by side on real text in five minutes."""
