"""The database: its tables, the states of what they hold, its migrations and its transactions.

`database` opens SQLite or PostgreSQL and provides read and write transactions; `tables` defines what is stored;
`states` and `moves` define and check changes of state; `ids` makes sortable ids.
"""
