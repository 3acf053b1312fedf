"""Bodies of requests and responses that are read or written in pieces.

`request_body` and `multipart` read requests; `stored_object`, `growing_files` and `job_stream` write responses. The
streams of a job share `job_looks`; a `tail` knows what each has sent.
"""
