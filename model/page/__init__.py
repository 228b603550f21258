"""The page in the browser: pictures as HTML, style, script."""

START = {"digit": "7", "seed": 67}  # what a page opens with; steps and guidance are those of the weights
MAX_SHEET = 400  # digits
