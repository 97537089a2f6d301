"""SegNet on CamVid (P4-C9): a large network trained with unit-norm filters and with plain SGD."""
