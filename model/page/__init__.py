"""The web page: HTML, styles, scripts and its server side."""
