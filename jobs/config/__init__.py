"""The operator's configuration: settings, the catalogue of models, projects and their limits.

`settings` is the only module that reads the environment. The others define groups of settings, the types of larger
fields, and functions that use them: `catalogue`, `limits`, `projects`, `addresses`, `activities`, `private_files`.
"""
