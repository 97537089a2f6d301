"""The experiments of the chapter on simultaneous linear connectivity."""
