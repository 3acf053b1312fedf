"""The HTTP client that the command line and users' programs drive Stoker with.

`http_client` has a method for each route; `connection` and `event_stream` survive restarts of the API; `local_machine`
tells whether client and API share a file system; `plain_data` reads specs from JSON and YAML.
"""
