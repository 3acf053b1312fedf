"""What an operator needs besides the API: keys, the database's schema, metrics, the version.

None of it needs a running service; `stoker doctor` (in `embedded`) and the API use these parts too.
"""
