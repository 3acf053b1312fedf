"""What is decided about a submission before it is a job: how large it is, whether its promise can be kept, and when.

`job_plan` answers `stoker plan`, which changes nothing.
"""
