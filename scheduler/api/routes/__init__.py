"""The routes of the HTTP API, one module for each kind of thing.

Each reads its request with the means of `scheduler.api`, calls a verb of `jobs.ledger` and answers with a form of
`scheduler.api.schemas`.
"""
