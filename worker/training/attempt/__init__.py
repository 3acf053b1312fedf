"""One attempt of a training job, from the lease to its artifacts.

`attempt_run` is the lease, `ranks` and `process` are its processes, `gang_start` brings hosts together,
`checkpoint_upload` and `artifacts` bring files into the store.
"""
