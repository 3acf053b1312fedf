"""The JSON responses of the API as pydantic models, and how they are made from table rows.

One module for each kind of thing; `lists` bounds pages, and `describe_jobs` adds to jobs what they wait for.
"""
