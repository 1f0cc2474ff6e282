"""The command line: one file per verb, imported only when named; each parses, calls one room, and prints."""
