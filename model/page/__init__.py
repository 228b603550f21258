"""The page in the browser: pictures as HTML, style, script."""
