"""Lines, triangles and simplices between trained networks, and what lies on them."""
