"""One file a peer: the same training, written as a user of that tool would write it, with its best settings."""
