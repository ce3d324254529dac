"""The page on which a live session is watched, and its server."""
