"""``mtkd benchmark NAME``: measurements of time and memory."""
