"""Other people's code and templates: each runs in a process of its own that can be killed."""
