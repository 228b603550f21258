"""The static page: a network in the visitor's own browser, and what puts it into a folder for any file server."""
