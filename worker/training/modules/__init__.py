"""Users' own training code: the types it uses, how it is loaded, and recipes that come with Stoker.

`user_module` has `Parts`, `Phase` and `Setup`; `load_module` imports a file and checks what it builds; `dependencies`
keeps the source of everything that it imports from beside it.
"""
