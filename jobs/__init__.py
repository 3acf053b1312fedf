"""Jobs: their specs, their states, the database tables, and the functions that change them.

No module of this package imports torch or a web framework.
"""
