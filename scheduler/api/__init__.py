"""The HTTP API: Stoker's own routes under /v1, health and metrics.

`serve` is the process, `server` and `protocol` its connections, `app` puts the routes together. `routes` parse requests
and call the ledger, `bodies` read and write what is long, `views` are the JSON responses, `access` checks keys.
`shared_reads` answers streams that wait for the same thing by one read.
"""
