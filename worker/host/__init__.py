"""One host's worker: finds its slots and keeps one Celery worker alive for each.

`main` is `stoker worker`; `slots` finds the GPUs, MIG slices or CPU shares of this host.
"""
