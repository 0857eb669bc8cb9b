"""Names that results use beside those of the modalities."""

#: All modalities together: the joint prediction, its classifier and its loss.
JOINT = "joint"
