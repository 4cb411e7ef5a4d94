"""Programs that others wrote, before and after a sed of their imports and calls."""
