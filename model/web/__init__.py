"""The static page: the network in the visitor's browser, and its export to a folder for any file server."""
