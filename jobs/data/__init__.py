"""Rows and where they live: the files of an input, the artifact store, and the files of results.

`sources` reads ranges of input rows, `sinks` records results and exports them, `store` keeps artifacts by name,
`atomic` writes local files completely or not at all, and `row_errors` decides when failed rows fail a job.
"""
