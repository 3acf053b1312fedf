"""The database: its tables, the states of what they hold, its migrations and its transactions.

`database` opens SQLite or PostgreSQL and gives read and write transactions; `tables` and `states` say what is stored
and which changes of state there are; `ids` makes sortable ids.
"""
