"""Records of one's own, public data sets in their published formats, and worlds that are generated from a seed."""
