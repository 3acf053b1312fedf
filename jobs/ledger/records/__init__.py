"""What is reported about jobs: `history` and `notices` of a job, `webhooks` and their `announcements`.

`paging`: pages of any list.
"""
