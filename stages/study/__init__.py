"""``mtkd study``: students that were trained under several conditions, compared on one project's frames."""
