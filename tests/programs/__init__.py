"""Programs by other people, before and after a sed of their imports and calls."""
