"""One attempt of a training job, from the lease to its artifacts.

`attempt_run` runs the lease, `ranks` and `process` are its processes, `gang_start` waits for the gang's slots,
`checkpoint_upload` and `artifacts` copy files into the store.
"""
