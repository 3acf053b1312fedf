"""What the operator sets: settings, the catalogue of models, projects and their limits.

`settings` is the only reader of the environment. The other modules hold the types of its larger fields, and what
follows from them: `catalogue`, `limits`, `projects`, `addresses`, `activities`, and the `private_files` it names.
"""
