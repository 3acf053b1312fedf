"""Who may send a request and what they see: `auth` checks the key, `scope` limits it to its project's objects.

`live_key` ends long responses when their key is revoked.
"""
