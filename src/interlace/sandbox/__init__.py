"""Runs programs and templates of other people, each in a process that has limits and can be killed.

`cage` runs programs that a model wrote, `templates` renders Jinja, `worker` runs work that may hang. It needs no torch.
"""
