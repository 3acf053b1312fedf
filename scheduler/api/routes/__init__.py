"""The routes of the HTTP API, one module for each kind of thing.

A route parses its request with `access` and `bodies`, calls a verb of `jobs.ledger`, and returns a model of `views`.
"""
