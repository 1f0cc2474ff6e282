"""An OpenAI-compatible HTTP server over the engine.

`app` has the routes, `run` listens, `guard` and `keys` keep the door, `schema` says what requests may hold.
"""
