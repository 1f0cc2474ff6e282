"""Parses a command, calls one room and prints the result: one file for each verb.

A verb's file is imported only when the verb is named.
"""
