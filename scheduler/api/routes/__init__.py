"""The routes of the HTTP API, one module for each kind of thing.

Each route parses its request with the modules of `scheduler.api`, calls a verb of `jobs.ledger` and returns a model
of `scheduler.api.schemas`.
"""
