"""``mtkd study``: students that were trained under several conditions, on one project's frames."""
