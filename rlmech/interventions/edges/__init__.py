"""The component graph: single edges and paths, attributions of edges, and circuits found among them."""
