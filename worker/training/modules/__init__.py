"""Users' training modules: the types they use, how they are loaded, and the recipes that come with Stoker.

`user_module` has `Parts`, `Phase` and `Setup`; `load_module` imports a file and checks what it builds; `dependencies`
keeps the source of the user's files that it imports.
"""
